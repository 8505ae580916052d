"""Linear layers for GPUs whose weights are integers and whose activations are floats.

The numbers are those of `quantized.py`, laid out anew: each output's weights lie together. Few rows
are multiplied by a kernel that reads the integers; for more of them the weight is made floats
again, piece by piece, and multiplied by torch.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phiscope.errors import UnsupportedError
from phiscope.quantized import FORMATS, Int4Linear, Int8Linear, QuantizedLinear

Product = Callable[["WeightOnlyLinear", Tensor], Tensor]
_MOST_ROWS = 8
_PIECE = 4096
"""Outputs whose weights are made floats at a time, which bounds the memory it takes."""


class WeightOnlyLinear(nn.Module):
    """`nn.Linear` on integer weights, for inference. Without `product` there is no kernel."""

    integers: Tensor
    """(outs, inputs) int8; of 8-bit layers."""
    halves: Tensor
    """(outs, inputs / 2) uint8; of 4-bit layers, as `kernels.triton_linear.Int4Rows` says."""
    multipliers: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, layer: QuantizedLinear, product: Product | None = None) -> None:
        super().__init__()
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.bits = layer.bits
        self._product = product
        for name, tensor in _LAYOUTS[type(layer)](layer).items():
            self.register_buffer(name, tensor)
        self.register_buffer("scales", layer.scales)
        self.register_buffer("bias", layer.bias)

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features) fp32, a copy."""
        return self._widen(slice(None))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, in_features) to (rows, out_features), without gradients."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise UnsupportedError("integer weights pass no gradients on; load a mode of floats")
        if self._product is not None and len(x) <= _MOST_ROWS:
            return self._product(self, x)
        pieces = [slice(i, i + _PIECE) for i in range(0, self.out_features, _PIECE)]
        products = [F.linear(x, self._widen(piece).to(x.dtype)) for piece in pieces]
        y = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _widen(self, rows: slice) -> Tensor:
        return _INTEGERS[self.bits](self, rows) * self.scales[rows, None]


def multiply_by_triton(layer: WeightOnlyLinear, x: Tensor) -> Tensor:
    """The product of at most 8 rows by a kernel that reads the integers."""
    from phiscope.kernels.triton_linear import Int4Rows, multiply, multiply_int4

    if layer.bits == 8:
        return multiply(x, layer.integers, layer.scales, layer.bias)
    weight = Int4Rows(layer.halves, layer.multipliers, layer.scales)
    return multiply_int4(x, weight, layer.bias)


def round_weights(module: nn.Module, format: str, product: Product | None) -> None:
    """Put integer weights in place of every linear layer, one after the other."""
    kind = FORMATS[format]
    for parent in [m for m in module.modules() if any(True for _ in m.children())]:
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, WeightOnlyLinear(kind.of(child), product))
            del child


def _lay_out_int8(layer: QuantizedLinear) -> dict[str, Tensor]:
    return {"integers": layer.integers().contiguous()}


def _lay_out_int4(layer: QuantizedLinear) -> dict[str, Tensor]:
    """As `kernels.triton_linear.Int4Rows` says."""
    assert isinstance(layer, Int4Linear)
    outs, (_, chunks, _) = layer.out_features, layer.panels.shape
    halves = layer.panels.view(-1, chunks, 16, 4).transpose(1, 2).reshape(-1, 4 * chunks)
    multipliers = layer.multipliers.transpose(1, 2).reshape(len(halves), -1)
    return {"halves": halves[:outs].contiguous(), "multipliers": multipliers[:outs].contiguous()}


def _read_int8(layer: WeightOnlyLinear, rows: slice) -> Tensor:
    return layer.integers[rows].float()


def _read_int4(layer: WeightOnlyLinear, rows: slice) -> Tensor:
    both = layer.halves[rows].view(-1, layer.halves.shape[1] // 4, 1, 4)
    q = torch.cat((both & 15, both >> 4), dim=2).flatten(1).float() - 8
    whole = q * layer.multipliers[rows].float().repeat_interleave(32, dim=1)
    return whole[:, : layer.in_features]


_LAYOUTS: dict[type[QuantizedLinear], Callable[[QuantizedLinear], dict[str, Tensor]]] = {
    Int8Linear: _lay_out_int8,
    Int4Linear: _lay_out_int4,
}
_INTEGERS: dict[int, Callable[[WeightOnlyLinear, slice], Tensor]] = {8: _read_int8, 4: _read_int4}
