"""Linear layers whose weights lie in memory as the CPU's matrix kernels read them, for inference.

A product with few tokens has to read the whole weight. oneDNN reads its own blocked order of bf16
at about twice the speed of plain rows, and never slower for many tokens; the results are the same.
The plain weight is given up, so memory stays what it was.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from phiscope.errors import UnsupportedError


class PrepackedLinear(nn.Module):
    """`nn.Linear` on a prepacked weight; `weight` is a plain copy, made when it is asked for."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features), a copy."""
        weight: Tensor = self._packed.to_dense()
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features), without gradients."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise UnsupportedError("prepacked weights pass no gradients on: unpack the model first")
        if x.dtype != self._packed.dtype:
            raise UnsupportedError(
                f"prepacked weights of {self._packed.dtype} take no {x.dtype}: unpack first"
            )
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y

    def unpack(self) -> nn.Linear:
        """The plain layer again."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta")
        linear.weight = nn.Parameter(self.weight, requires_grad=False)
        linear.bias = self.bias
        return linear

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PrepackedLinear":
        """What `to`, `half` and `cuda` call; the packed weight stays where, and as, it is."""
        probe = torch.empty(0, dtype=self._packed.dtype)
        moved = fn(probe)
        if (moved.dtype, moved.device) != (probe.dtype, probe.device):
            raise UnsupportedError("prepacked weights are not converted or moved: unpack first")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight


def prepack(model: nn.Module) -> None:
    """Prepack every plain linear layer, one after the other, but those that share their weight."""
    shared = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}

    def replace(module: nn.Module) -> nn.Module | None:
        if type(module) is not nn.Linear or id(module.weight) in shared:
            return None
        return PrepackedLinear(module)

    _replace_children(model, replace)


def unpack(model: nn.Module) -> None:
    """Make every prepacked layer plain again, one after the other."""
    _replace_children(model, lambda x: x.unpack() if isinstance(x, PrepackedLinear) else None)


def _replace_children(model: nn.Module, replace: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put in place of each module what `replace` makes of it, if anything.

    No module is held but those with children, so that what is replaced is freed at once.
    """
    for parent in [module for module in model.modules() if any(True for _ in module.children())]:
        for name in list(dict(parent.named_children())):
            new = replace(getattr(parent, name))
            if new is not None:
                setattr(parent, name, new)
