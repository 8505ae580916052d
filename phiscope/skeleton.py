"""A model without weights: its modules on "meta", for whoever brings tensors of their own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from phiscope.config import PhiConfig
from phiscope.model import PhiForCausalLM


def make_skeleton(config: PhiConfig, layers: int | None = None) -> PhiForCausalLM:
    """The modules of a model, with `layers` of its blocks or all, whose weights have no memory."""
    with torch.device("meta"), NoInitialValues():
        return PhiForCausalLM(config, layers=layers)


class NoInitialValues(TorchFunctionMode):
    """Skips `torch.nn.init`: on "meta" it fills nothing, and imports torch's compiler for it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
