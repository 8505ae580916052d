"""Weights between folders and models: load, save, convert.

A folder is written under a temporary name and renamed when complete, so that it is there whole or
not at all.
"""

import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from phiscope.checkpoint.folder import FLOATS, Checkpoint, dtype_name
from phiscope.checkpoint.layouts import (
    DIALECTS,
    LAYOUTS,
    Layout,
    Piece,
    Shape,
    check_shapes,
    find_pieces,
    our_shapes,
    stored_shapes,
)
from phiscope.checkpoint.safetensors_format import sync_folder, write_bytes, write_json
from phiscope.checkpoint.stored import WeightFile
from phiscope.checkpoint.weights import Span, convert_values, read_spans, write_weights
from phiscope.config import MAX_CONFIG_BYTES, PhiConfig
from phiscope.errors import CheckpointError, UnsupportedError
from phiscope.kernels.build import explain_bus_errors
from phiscope.model import PhiForCausalLM
from phiscope.quantized import QuantizedLinear
from phiscope.runtime import use_huge_pages
from phiscope.skeleton import make_skeleton
from phiscope.strict import read_json_object

SHARD_SIZE = 5 * 10**9
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("added_tokens.json", "special_tokens_map.json"),
)

Fetch = Callable[[str], Tensor]


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    layers: int | None = None,
    progress: bool = False,
    mapped: bool = False,
) -> PhiForCausalLM:
    """Read a checkpoint of any layout into a model in evaluation mode, without gradients.

    With `layers=17` only the embeddings and the first 17 blocks are read. With `mapped` what lies
    in a file as a CPU wants it stays there. Peak memory is the model's. Raises `CheckpointError`,
    `ConfigError`, `UnsupportedError`, or `NonFiniteError` where `dtype` cannot hold a weight; warns
    where a weight is NaN or infinite.
    """
    _check_dtype(dtype)
    with Checkpoint(Path(folder)) as checkpoint:
        model = make_skeleton(checkpoint.config, layers)
        parameters = dict(model.named_parameters())
        can_map = mapped and torch.device(device).type == "cpu"
        there = checkpoint.map(parameters, dtype) if can_map else {}
        state = {
            name: use_huge_pages(torch.empty(parameter.shape, dtype=dtype, device=device))
            for name, parameter in parameters.items()
            if name not in there
        }
        spans = [*checkpoint.spans(state), *checkpoint.spans(there, are_read=True)]
        non_finite = _read_with_bar(spans, progress=progress)
        if there:
            watch_files(model, checkpoint.weights.files)
        checkpoint.weights.check_unchanged()
    warn_non_finite(checkpoint.folder, non_finite)
    model.load_state_dict(state | there, assign=True)
    return model.requires_grad_(False).eval()


def watch_files(model: PhiForCausalLM, files: Iterable[WeightFile]) -> None:
    """Let a model that lies in mapped files refuse to run after one of them was written to."""
    model.model.sources = tuple(file.watch() for file in files)
    explain_bus_errors()


def save_checkpoint(
    model: PhiForCausalLM,
    folder: Path,
    *,
    layout: Layout = "D",
    dtype: torch.dtype | None = None,
    max_shard_size: int = SHARD_SIZE,
) -> None:
    """Write a whole model as a checkpoint folder, which appears complete or not at all."""
    if model.lm_head is None:
        raise UnsupportedError("a model loaded with layers= is no checkpoint; load it whole")
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise UnsupportedError("integer weights are not saved as floats; `phiscope quantize` does")
    state = model.state_dict()
    check_shapes(
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        our_shapes(model.config),
        where="the model to save",
    )
    _check_dtype(dtype)
    dtypes = {name: dtype or tensor.dtype for name, tensor in state.items()}

    def fetch(name: str) -> Tensor:
        return convert_values(state[name].cpu(), dtypes[name], name)[0]

    write_checkpoint(
        folder, model.config, dtypes, fetch, layout=layout, max_shard_size=max_shard_size
    )


def write_checkpoint(
    folder: Path,
    config: PhiConfig,
    dtypes: Mapping[str, torch.dtype],
    fetch: Fetch,
    *,
    layout: Layout = "D",
    max_shard_size: int = SHARD_SIZE,
) -> None:
    """Write a checkpoint of parameters that `fetch` gives one at a time, by our names."""
    with new_folder(Path(folder)) as temporary:
        _write_checkpoint(temporary, config, layout, dtypes, fetch, max_shard_size)


def convert(
    source: Path,
    destination: Path,
    *,
    layout: Layout,
    dtype: torch.dtype | None = None,
    max_shard_size: int = SHARD_SIZE,
    progress: bool = False,
) -> None:
    """Rewrite a checkpoint in another layout, one tensor at a time, with its tokenizer's files.

    `dtype=None` keeps every stored dtype. The destination, which must not exist or be empty,
    appears complete or not at all.
    """
    _check_dtype(dtype)
    with Checkpoint(Path(source)) as checkpoint, new_folder(Path(destination)) as temporary:
        dtypes = {name: dtype or checkpoint.dtype_of(name) for name in checkpoint.shapes}
        bar = make_bar(checkpoint.config.num_parameters, "parameter", progress=progress)

        def fetch(name: str) -> Tensor:
            tensor = checkpoint.fetch(name, dtypes[name])
            bar.update(tensor.numel())
            return tensor

        with bar:
            config = checkpoint.config
            _write_checkpoint(temporary, config, layout, dtypes, fetch, max_shard_size)
        checkpoint.weights.check_unchanged()
        copy_side_files(checkpoint.folder, temporary)


def _write_checkpoint(
    folder: Path,
    config: PhiConfig,
    layout: Layout,
    dtypes: Mapping[str, torch.dtype],
    fetch: Fetch,
    max_shard_size: int,
) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"no layout {layout!r}; choose from {LAYOUTS}")
    pieces = find_pieces(config, layout)
    shapes = stored_shapes(config, layout)
    entries = {
        piece.name: (dtypes[name], shapes[piece.name]) for name in pieces for piece in pieces[name]
    }
    commonest = Counter(dtype_name(dtype) for dtype in dtypes.values()).most_common(1)[0][0]
    config = replace(config, dtype=commonest)
    write_configs(folder, config, layout)
    tensors = _rearrange(pieces, shapes, fetch)
    write_weights(folder, entries, tensors, max_shard_size=max_shard_size)


def write_configs(folder: Path, config: PhiConfig, layout: Layout = "D") -> None:
    """The config, and the generation settings that follow from it."""
    write_json(folder / "config.json", config.to_dict(DIALECTS[layout]))
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})


def _rearrange(
    pieces: Mapping[str, list[Piece]], shapes: Mapping[str, Shape], fetch: Fetch
) -> Iterator[Tensor]:
    """The tensors to store, one at a time, made from ours."""
    for name, parts in pieces.items():
        ours = fetch(name)
        for stored in dict.fromkeys(piece.name for piece in parts):
            own = [piece for piece in parts if piece.name == stored]
            yield _gather(ours, own, shapes[stored])


def _gather(ours: Tensor, pieces: list[Piece], shape: Shape) -> Tensor:
    first = pieces[0]
    if len(pieces) == 1:
        return ours[first.target : first.target + first.rows]
    stored = ours.new_empty(shape)
    for piece in pieces:
        rows = ours[piece.target : piece.target + piece.rows]
        stored[piece.start : piece.start + piece.rows] = rows
    return stored


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"weights cannot be {dtype}; choose from {FLOATS}")


def _read_with_bar(spans: list[Span], *, progress: bool) -> set[str]:
    total = sum(span.out.shape[0] * span.source.row_bytes for span in spans)
    with make_bar(total, "B", progress=progress) as bar:
        return read_spans(spans, on_bytes=bar.update)


def make_bar(total: int, unit: str, *, progress: bool) -> "tqdm[None]":
    """A bar on stderr that shows after two seconds, and never where there is no terminal."""
    hidden = None if progress else True
    return tqdm(total=total, unit=unit, unit_scale=True, delay=2, disable=hidden)


def warn_non_finite(folder: Path, names: Iterable[str]) -> None:
    names = sorted(names)
    if names:
        warnings.warn(
            f"{len(names)} tensors of {folder} hold NaN or infinity, the first {names[:5]}; "
            "`phiscope verify` names them all",
            RuntimeWarning,
            stacklevel=3,
        )


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside the wanted one, which takes its name when all went well.

    After a fault nothing is left; after a kill, at most a folder named `.NAME.PID.tmp`.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty; name a new folder")
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        sync_folder(temporary)
        temporary.replace(folder.absolute())
        sync_folder(temporary.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise CheckpointError(f"cannot write {folder}: {error.strerror or error}") from error
        raise


def copy_side_files(source: Path, folder: Path) -> None:
    """The tokenizer's files, and generation settings where the source has some."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            write_bytes(folder / name, (source / name).read_bytes())
    settings = source / "generation_config.json"
    if settings.is_file():
        values = read_json_object(settings, MAX_CONFIG_BYTES, CheckpointError)
        write_json(folder / settings.name, values)
