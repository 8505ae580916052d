"""Integer weights: rounded from a checkpoint of floats, into memory or into a folder, and mapped.

Floats are read and rounded some rows at a time, by several threads, so that memory holds the
integers and no more. Rounding when loading gives the weights that a folder would hold.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from phiscope.checkpoint.folder import Checkpoint
from phiscope.checkpoint.quantized_folder import (
    ALIGNMENT,
    FILE_NAME,
    QuantizedCheckpoint,
    list_entries,
    make_integer_skeleton,
)
from phiscope.checkpoint.safetensors_format import write_safetensors
from phiscope.checkpoint.transfer import (
    copy_side_files,
    make_bar,
    new_folder,
    warn_non_finite,
    watch_files,
    write_configs,
)
from phiscope.checkpoint.weights import read_spans
from phiscope.config import PhiConfig, read_config
from phiscope.errors import NonFiniteError, UnsupportedError
from phiscope.finite import all_finite
from phiscope.model import PhiForCausalLM
from phiscope.quantized import FORMATS, QuantizedLinear

OnBytes = Callable[[int], object]


def quantize(
    source: Path, destination: Path, *, format: str = "int8", progress: bool = False
) -> None:
    """Round a checkpoint of floats to a folder that `load` maps: "int8" or "int4".

    Linear layers become integers, embeddings bf16, norms and biases fp32. One layer is in memory
    at a time. The destination, which must not exist or be empty, appears complete or not at all.
    Raises `NonFiniteError` naming a tensor that holds a NaN or an infinity.
    """
    if format not in FORMATS:
        raise ValueError(f"no format {format!r}; choose from {', '.join(FORMATS)}")
    with Checkpoint(Path(source)) as checkpoint, new_folder(Path(destination)) as temporary:
        model = make_integer_skeleton(checkpoint.config, format)
        entries = list_entries(model)
        total = sum(tensor.num_bytes for tensor in checkpoint.tensors.values())
        with make_bar(total, "B", progress=progress) as bar:
            tensors = _Rounded(checkpoint, model, bar.update).make(list(entries))
            write_safetensors(temporary / FILE_NAME, entries, tensors, alignment=ALIGNMENT)
        checkpoint.weights.check_unchanged()
        config = replace(checkpoint.config, quantization=format, dtype="bfloat16")
        write_configs(temporary, config)
        copy_side_files(checkpoint.folder, temporary)


def load_integers(
    folder: Path,
    format: str,
    *,
    wide: bool = False,
    layers: int | None = None,
    progress: bool = False,
) -> PhiForCausalLM:
    """A model with integer weights: mapped where they are stored as such, else rounded now.

    `wide` layers leave activations in fp32. Raises as `load_model` does, and `UnsupportedError`
    for integers of another format.
    """
    config = read_config(Path(folder))
    if config.quantization is None:
        return _round(Path(folder), format, wide=wide, layers=layers, progress=progress)
    if config.quantization != format:
        raise UnsupportedError(
            f"{folder} holds weights rounded to {config.quantization}, not to {format}; take the "
            "float checkpoint they came from"
        )
    return _map(Path(folder), config, wide=wide, layers=layers)


def _map(folder: Path, config: PhiConfig, *, wide: bool, layers: int | None) -> PhiForCausalLM:
    with QuantizedCheckpoint(folder) as checkpoint:
        assert config.quantization is not None
        model = make_integer_skeleton(config, config.quantization, layers, wide=wide)
        state = checkpoint.map(model.state_dict().keys())
        watch_files(model, checkpoint.weights.files)
        checkpoint.weights.check_unchanged()
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)


def _round(
    folder: Path, format: str, *, wide: bool, layers: int | None, progress: bool
) -> PhiForCausalLM:
    with Checkpoint(folder) as checkpoint:
        model = make_integer_skeleton(checkpoint.config, format, layers, wide=wide)
        entries = list_entries(model)
        state = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in entries.items()}
        model.load_state_dict(state, assign=True)
        floats = {name: tensor for name, tensor in state.items() if name in checkpoint.shapes}
        found = find_layers(model)
        total = sum(checkpoint.count_bytes(name) for name in (*floats, *_weights_of(found)))
        with make_bar(total, "B", progress=progress) as bar:
            non_finite = read_spans(checkpoint.spans(floats), on_bytes=bar.update)
            non_finite |= fill(checkpoint, found, bar.update)
        checkpoint.weights.check_unchanged()
    warn_non_finite(checkpoint.folder, non_finite)
    return model.requires_grad_(False)


def find_layers(model: PhiForCausalLM) -> dict[str, QuantizedLinear]:
    """The layers with integer weights, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }


def fill(
    checkpoint: Checkpoint, layers: Mapping[str, QuantizedLinear], on_bytes: OnBytes
) -> set[str]:
    """Round the layers' weights; the names of those that hold a NaN or an infinity."""
    non_finite: set[str] = set()

    def fill_rows(name: str, layer: QuantizedLinear, rows: range) -> int:
        weight, finite = checkpoint.read_rows(name, rows)
        layer.fill(weight, rows.start)
        if not finite:
            non_finite.add(name)
        return weight.nbytes

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        parts = [
            pool.submit(fill_rows, f"{name}.weight", layer, rows)
            for name, layer in layers.items()
            for rows in _cut(layer)
        ]
        try:
            for part in as_completed(parts):
                on_bytes(part.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return non_finite


class _Rounded:
    """What a folder holds, made when it is written; a layer's scales wait for their turn."""

    def __init__(self, checkpoint: Checkpoint, model: PhiForCausalLM, on_bytes: OnBytes) -> None:
        self._checkpoint = checkpoint
        self._layers = find_layers(model)
        self._dtypes = {name: dtype for name, (dtype, _) in list_entries(model).items()}
        self._on_bytes = on_bytes

    def make(self, names: list[str]) -> Iterator[Tensor]:
        """The tensors of these names, of which a layer's panels come first."""
        waiting: dict[str, Tensor] = {}
        for name in names:
            module, _, part = name.rpartition(".")
            if part == "panels":
                waiting |= self._round(module)
            yield waiting.pop(name) if name in waiting else self._read(name)

    def _round(self, name: str) -> dict[str, Tensor]:
        layer = self._layers[name].make_alike()
        if fill(self._checkpoint, {name: layer}, self._on_bytes):
            raise _no_number(f"{name}.weight")
        return {f"{name}.{part}": getattr(layer, part) for part in layer.stored_names}

    def _read(self, name: str) -> Tensor:
        tensor = self._checkpoint.fetch(name, self._dtypes[name])
        self._on_bytes(self._checkpoint.count_bytes(name))
        if not all_finite(tensor):
            raise _no_number(name)
        return tensor


def _no_number(name: str) -> NonFiniteError:
    return NonFiniteError(f"{name!r} holds NaN or infinity, and only numbers can be rounded")


def _cut(layer: QuantizedLinear) -> Iterator[range]:
    size = layer.rows_at_a_time
    for first in range(0, layer.out_features, size):
        yield range(first, min(first + size, layer.out_features))


def _weights_of(layers: Mapping[str, QuantizedLinear]) -> Iterator[str]:
    return (f"{name}.weight" for name in layers)
