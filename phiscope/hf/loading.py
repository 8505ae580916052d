"""`from_pretrained` for every layout: transformers reads layout D, and is handed the others as D.

The other layouts are read by `phiscope.checkpoint`, which proves their headers before anything is
allocated; each tensor is read when transformers asks for it, so memory holds the model once.
"""

import copy
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from phiscope.checkpoint.folder import Checkpoint, refuse_integers
from phiscope.checkpoint.hub import find_local, resolve
from phiscope.checkpoint.layouts import Piece, find_pieces
from phiscope.checkpoint.quantized_folder import FILE_NAME
from phiscope.checkpoint.weights import Weights
from phiscope.config import MAX_CONFIG_BYTES, read_config
from phiscope.errors import CheckpointError
from phiscope.hf.flags import Flags
from phiscope.strict import read_json_object

_DTYPES: tuple[str, ...] = ("dtype", "torch_dtype")
_HUB = ("cache_dir", "token", "local_files_only", "force_download")
_WEIGHT_FILES = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_ADAPTER = "adapter_config.json"
_FUSED = re.compile(r"\.(mixer\.Wqkv|self_attn\.query_key_value)\.")
"""What layouts A, B and C have, and D has not."""
_OTHERS = ("gguf_file", "state_dict", "variant")
"""Arguments that name other weights than those of the folder's own files."""


class CheckpointLoading:
    """Mixed into our models before transformers' class, whose `from_pretrained` does the rest."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """Load a checkpoint of any layout, with transformers' own arguments and the model card's.

        It is named by a folder, a hub id, or "tiny" or "nano". `flash_attn`, `flash_rotary` and
        `fused_dense` are the card's. Raises `CheckpointError` for weights that do not fit their
        config and `UnsupportedError` for other families.
        """
        flags = Flags.take(kwargs)
        adapter, name = _take_adapter(pretrained_model_name_or_path, kwargs)
        adapter_name = kwargs.get("adapter_name", "default")
        folder = _find_folder(name, kwargs)
        if folder is None:
            loaded = super().from_pretrained(name, *args, config=config, **kwargs)  # type: ignore[misc]
        else:
            loaded = cls._from_folder(folder, args, config, kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if folder is not None:
            model.config._name_or_path = model.name_or_path = str(name)
        if adapter is not None and not model._hf_peft_config_loaded:
            model.load_adapter(adapter, adapter_name=adapter_name)
        flags.apply(model)
        return loaded

    @classmethod
    def _from_folder(cls, folder: Path, args: Any, config: Any, kwargs: dict[str, Any]) -> Any:
        load = super().from_pretrained  # type: ignore[misc]
        if _is_native(folder):
            return load(str(folder), *args, config=config, **kwargs)
        with Checkpoint(folder) as checkpoint:
            config, kwargs = cls._read_config(folder, checkpoint, config, kwargs)
            generation = kwargs.pop("generation_config", None) or _read_generation(folder)
            state = dict(_as_native(checkpoint))
            loaded = load(None, *args, config=config, state_dict=state, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if generation is not None and model.can_generate():
            model.generation_config = generation
        return loaded

    @classmethod
    def _read_config(
        cls, folder: Path, checkpoint: Checkpoint, config: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """The config, of as many rows as are stored, and what of the arguments it did not take."""
        if config is None or isinstance(config, str | os.PathLike):
            source = folder if config is None else config
            auto = {key: kwargs.pop(key) for key in _DTYPES if key in kwargs}
            config, kwargs = cls.config_class.from_pretrained(  # type: ignore[attr-defined]
                source, return_unused_kwargs=True, **kwargs
            )
            kwargs |= auto
        config = copy.deepcopy(config)
        config.vocab_size = checkpoint.config.vocab_size
        if config.dtype is None:
            config.dtype = getattr(torch, next(iter(checkpoint.dtypes)))
        return config, kwargs


@dataclass(frozen=True)
class StoredRows:
    """Rows of one of our tensors, read when they are asked for with `[...]`."""

    checkpoint: Checkpoint
    name: str
    rows: range

    @property
    def dtype(self) -> torch.dtype:
        return self.checkpoint.dtype_of(self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.checkpoint.shapes[self.name][1:])

    def __getitem__(self, index: Any) -> Tensor:
        return self.checkpoint.fetch_rows(self.name, self.rows, self.dtype)[index]


def _take_adapter(name: Any, kwargs: dict[str, Any]) -> tuple[str | None, Any]:
    """The folder or id of an adapter, if there is one, and of the model that it adapts.

    The Auto classes have found it already, and say so in `adapter_kwargs`.
    """
    options = dict(kwargs.get("adapter_kwargs") or {})
    found = options.pop("_adapter_model_path", None)
    if found is not None:
        kwargs["adapter_kwargs"] = options
        return str(found), name
    folder = None if name is None else find_local(str(name))
    if folder is None or not (folder / _ADAPTER).is_file():
        return None, name
    if (folder / "config.json").is_file():  # the model lies beside its adapter
        return str(folder), name
    config = read_json_object(folder / _ADAPTER, MAX_CONFIG_BYTES, CheckpointError)
    base = config.get("base_model_name_or_path")
    if not base:
        raise CheckpointError(f"{folder / _ADAPTER} names no base_model_name_or_path")
    return str(folder), base


def _find_folder(name: Any, kwargs: dict[str, Any]) -> Path | None:
    """The folder with the weights, fetched if need be; None where transformers is to find them."""
    if name is None or any(kwargs.get(key) is not None for key in _OTHERS):
        return None
    local, sub = find_local(str(name)), kwargs.get("subfolder") or ""
    if local is None and sub:
        return None
    if local is None:
        options = {key: kwargs[key] for key in _HUB if kwargs.get(key) is not None}
        folder = resolve(str(name), revision=kwargs.get("revision"), options=options)
    else:
        folder = local / sub
    if not any((folder / file).is_file() for file in _WEIGHT_FILES):
        refuse_integers(folder, _read_quantization(folder))
        return None
    for key in (*_HUB, "revision", "subfolder"):
        kwargs.pop(key, None)
    return folder


def _read_quantization(folder: Path) -> str | None:
    """The format of integer weights, which transformers' classes do not run, if it has some."""
    is_there = (folder / FILE_NAME).is_file()
    return read_config(folder).quantization if is_there else None


def _is_native(folder: Path) -> bool:
    """Whether the weights are named as today's transformers names them, or as nobody does.

    The headers of all files are checked here, whoever reads them afterwards.
    """
    with Weights(folder) as weights:
        return not any(map(_FUSED.search, weights.tensors))


def _as_native(checkpoint: Checkpoint) -> Iterator[tuple[str, StoredRows]]:
    """Today's names of the weights, as transformers has them."""
    pieces: Mapping[str, list[Piece]] = find_pieces(checkpoint.config, "D")
    for name, parts in pieces.items():
        for part in parts:
            yield (
                part.name,
                StoredRows(checkpoint, name, range(part.target, part.target + part.rows)),
            )


def _read_generation(folder: Path) -> GenerationConfig | None:
    if not (folder / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(folder)
