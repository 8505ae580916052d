"""`save_pretrained` in any layout: D, which plain transformers opens, unless another is named."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phiscope.checkpoint import write_checkpoint
from phiscope.checkpoint.layouts import LAYOUTS, Layout, find_pieces
from phiscope.errors import UnsupportedError
from phiscope.hf.configuration import read_shape

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", re.IGNORECASE)


class CheckpointSaving:
    """Mixed into our models before transformers' class, whose `save_pretrained` writes layout D."""

    def save_pretrained(
        self, save_directory: Any, *args: Any, layout: Layout = "D", **kwargs: Any
    ) -> None:
        """Write config and weights in a layout; other arguments are transformers'.

        Layouts A, B and C hold a whole causal model and are written into a new folder, which
        appears complete or not at all. Raises `UnsupportedError` for what a layout cannot express.
        """
        if layout not in LAYOUTS:
            raise ValueError(f"no layout {layout!r}; choose from {LAYOUTS}")
        if layout == "D":
            kwargs.setdefault("save_original_format", False)
            super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
            return
        size = _read_size(kwargs.pop("max_shard_size", "5GB"))
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        if kwargs.pop("safe_serialization", True) is not True or args or kwargs:
            given = ", ".join([*kwargs, *map(repr, args)]) or "safe_serialization=False"
            raise TypeError(f"layout {layout!r} is written without {given}")
        _write(self, Path(save_directory), layout, size)


def _write(model: Any, folder: Path, layout: Layout, max_shard_size: int) -> None:
    if hasattr(model, "peft_config"):  # which PEFT sets on whatever it has changed
        raise UnsupportedError("merge the adapters first: a layout holds whole weights")
    if getattr(model.config, "quantization_config", None) is not None:
        raise UnsupportedError("quantized weights are saved in layout D only")
    state = model.state_dict()
    if "lm_head.weight" not in state:
        raise UnsupportedError(
            f"layout {layout!r} has names for a causal model only, not for {type(model).__name__};"
            " save layout D"
        )
    shape = read_shape(model.config)
    native = find_pieces(shape, "D")
    parts = {name: [piece.name for piece in pieces] for name, pieces in native.items()}
    dtypes: dict[str, torch.dtype] = {name: state[names[0]].dtype for name, names in parts.items()}

    def fetch(name: str) -> Tensor:
        return torch.cat([state[part].detach().cpu() for part in parts[name]])

    write_checkpoint(folder, shape, dtypes, fetch, layout=layout, max_shard_size=max_shard_size)
    model.generation_config.save_pretrained(folder)


def _read_size(size: int | str) -> int:
    """Bytes, from a number or from transformers' "5GB"."""
    if isinstance(size, int):
        return size
    found = _SIZE.fullmatch(size.strip())
    if found is None:
        raise ValueError(f"max_shard_size is bytes or like '5GB', got {size!r}")
    return int(float(found[1]) * _UNITS[found[2].upper()])
