"""The model card's own arguments of `from_pretrained`: what they mean here, and what is said."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from phiscope.runtime import describe_machine

_FLASH_DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Flags:
    """`flash_attn=True, flash_rotary=True, fused_dense=True`, as the card writes them."""

    flash_attn: bool = False
    flash_rotary: bool = False
    fused_dense: bool = False

    @classmethod
    def take(cls, kwargs: dict[str, Any]) -> "Flags":
        """Take the flags out of the arguments; `TypeError` for one that is no bool."""
        given = {name: kwargs.pop(name) for name in cls.__dataclass_fields__ if name in kwargs}
        wrong = [name for name, value in given.items() if not isinstance(value, bool | None)]
        if wrong:
            raise TypeError(f"{wrong[0]} is True or False, got {given[wrong[0]]!r}")
        return cls(**{name: bool(value) for name, value in given.items()})

    def apply(self, model: Any) -> None:
        """Set a loaded model as the flags say, and warn of what is not as they say."""
        if self.flash_attn:
            _use_flash(model)
        named = [name for name in ("flash_rotary", "fused_dense") if getattr(self, name)]
        if named:
            _warn(
                f"{' and '.join(named)} chose kernels of the original code; here there is one"
                " rotation and one MLP for every machine, whose numbers are the same"
            )
        if model.dtype == torch.float16 and model.device.type == "cpu":
            _warn(
                "float16 on a CPU is computed many times slower than float32 or bfloat16:"
                " load with dtype=torch.float32 or dtype=torch.bfloat16"
            )


def _use_flash(model: Any) -> None:
    """Variable-length flash attention for prompts; steps of one token use torch's own choice."""
    is_fit = model.device.type == "cuda" and model.dtype in _FLASH_DTYPES
    if is_fit and describe_machine().has_flash:
        model.base_model.packed_attention = "flash"
        return
    _warn(
        "flash_attn=True needs a CUDA device of compute capability 8.0, float16 or bfloat16, and"
        f" torch's variable-length kernel; this is {model.dtype} on {model.device.type}. Torch's"
        " scaled_dot_product_attention is used, whose numbers are the same"
    )


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=5)
