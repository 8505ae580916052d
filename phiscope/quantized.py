"""Linear layers with integer weights: 8 bits, or 4 bits with a multiplier for every 32 inputs.

A product rounds each row of activations to 8 bits by a scale of its own, multiplies whole numbers
exactly, and scales the result, so a token's result never depends on its neighbours. `wide` layers
leave the activations in fp32 and only the weights are rounded.

int8: weight = scale * q, with q from -127 to 127 and a scale for each output.
int4: weight = scale * m * q, with q from -8 to 7 and a whole m from 1 to 16 for every 32 inputs of
an output (progressive group quantisation, arXiv:2405.04532): m * q is an 8-bit number again.

Weights lie in panels of 16 outputs, as the kernels read them (kernels/source/integer_linear.cpp).
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phiscope.errors import UnsupportedError
from phiscope.kernels import build, calls
from phiscope.runtime import use_huge_pages

GROUP = 32
"""Inputs with a common multiplier; a layer is filled up with zeros to whole groups of them."""
_PANEL = 16
_OUTPUTS = 4 * _PANEL
"""Outputs, too, are filled up: four panels are multiplied at a time."""
_ROWS = 4096
"""Rows of a weight that are quantized at a time, which bounds the memory it takes."""


class QuantizedLinear(nn.Module, ABC):
    """`nn.Linear` on integer weights, for inference; `weight` is made when it is asked for."""

    bits: int
    panels: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, *, bias: bool, wide: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.wide = wide
        for name, (shape, dtype) in self.shapes(in_features, out_features).items():
            self.register_buffer(name, use_huge_pages(torch.empty(shape, dtype=dtype)))
        self.register_buffer("bias", torch.empty(out_features) if bias else None)

    @staticmethod
    @abstractmethod
    def shapes(
        in_features: int, out_features: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Names, shapes and dtypes of what is stored, but for the bias."""

    @abstractmethod
    def fill(self, weight: Tensor, first: int) -> None:
        """Store rows of a weight in fp32, from output `first` on; whole panels but for the end."""

    @abstractmethod
    def integers(self) -> Tensor:
        """(out_features, in_features) int8: the weight in units of its outputs' scales."""

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """The product by the kernel."""

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features) fp32, a copy."""
        return self.integers() * self.scales[:, None]

    @classmethod
    def of(cls, linear: nn.Module, *, wide: bool = False) -> "QuantizedLinear":
        """A layer whose weights are rounded from those of a linear layer of floats."""
        weight, bias = linear.weight, linear.bias
        assert isinstance(weight, Tensor)
        with torch.inference_mode(False), torch.no_grad(), weight.device:
            layer = cls(weight.shape[1], weight.shape[0], bias=bias is not None, wide=wide)
            for first in range(0, layer.out_features, _ROWS):
                layer.fill(weight[first : first + _ROWS].float(), first)
            if isinstance(bias, Tensor) and layer.bias is not None:
                layer.bias.copy_(bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """(rows, in_features) fp32 to (rows, out_features) fp32, without gradients."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise UnsupportedError("integer weights pass no gradients on; load a mode of floats")
        has_kernels = build.find_obstacle() is None
        if self.wide:
            return self.multiply_widely(x) if has_kernels else F.linear(x, self.weight, self.bias)
        return self.multiply(x) if has_kernels else self.multiply_plainly(x)

    def multiply_widely(self, x: Tensor) -> Tensor:
        """The product with activations as they are."""
        return F.linear(x, self.weight, self.bias)

    def multiply_plainly(self, x: Tensor) -> Tensor:
        """The definition, in torch alone."""
        rounded, scales = round_rows(x)
        products = rounded.double() @ self.integers().double().T  # whole numbers: exact
        y = products.float() * scales * self.scales
        return y if self.bias is None else y + self.bias


class Int8Linear(QuantizedLinear):
    """Eight bits for each weight and a scale for each output."""

    bits = 8

    @staticmethod
    def shapes(
        in_features: int, out_features: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        inputs, outputs = _fill_up(in_features, GROUP), _fill_up(out_features, _OUTPUTS)
        return {
            "panels": ((outputs // _PANEL, inputs // 4, 64), torch.uint8),
            "scales": ((out_features,), torch.float32),
        }

    def fill(self, weight: Tensor, first: int) -> None:
        scales = weight.abs().amax(dim=1) / 127
        q = (weight / _divisor(scales)).round_().clamp_(-127, 127)
        panels = _pad(q, self.panels.shape[1] * 4).view(-1, _PANEL, self.panels.shape[1], 4) + 128
        place = first // _PANEL
        self.scales[first : first + len(weight)] = scales
        target = self.panels[place : place + len(panels)]
        target.view(*target.shape[:2], _PANEL, 4).copy_(panels.transpose(1, 2))

    def integers(self) -> Tensor:
        bytes_ = self.panels.view(*self.panels.shape[:2], _PANEL, 4).transpose(1, 2)
        q = (bytes_.reshape(-1, self.panels.shape[1] * 4).short() - 128).to(torch.int8)
        return q[: self.out_features, : self.in_features]

    def multiply(self, x: Tensor) -> Tensor:
        return calls.linear_int8(x, self.panels, self.scales, self.bias)

    def multiply_widely(self, x: Tensor) -> Tensor:
        return calls.linear_int8_wide(x, self.panels, self.scales, self.bias)


class Int4Linear(QuantizedLinear):
    """Four bits for each weight, a multiplier for each group, and a scale for each output."""

    bits = 4
    multipliers: Tensor

    @staticmethod
    def shapes(
        in_features: int, out_features: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        inputs, outputs = _fill_up(in_features, GROUP), _fill_up(out_features, _OUTPUTS)
        return {
            "panels": ((outputs // _PANEL, inputs // 8, 64), torch.uint8),
            "multipliers": ((outputs // _PANEL, inputs // GROUP, _PANEL), torch.uint8),
            "scales": ((out_features,), torch.float32),
        }

    def fill(self, weight: Tensor, first: int) -> None:
        scales = weight.abs().amax(dim=1) / 120
        units = _pad(weight / _divisor(scales), self.panels.shape[1] * 8)
        q, m = round_groups(units.view(len(units), -1, GROUP))
        halves = (q + 8).to(torch.uint8).view(-1, _PANEL, self.panels.shape[1], 2, 4)
        panels = halves[..., 0, :] | halves[..., 1, :] << 4
        place = first // _PANEL
        self.scales[first : first + len(weight)] = scales
        target = self.panels[place : place + len(panels)]
        target.view(*target.shape[:2], _PANEL, 4).copy_(panels.transpose(1, 2))
        grouped = m.to(torch.uint8).view(-1, _PANEL, m.shape[1]).transpose(1, 2)
        self.multipliers[place : place + len(grouped)] = grouped

    def integers(self) -> Tensor:
        bytes_ = self.panels.view(*self.panels.shape[:2], _PANEL, 4).transpose(1, 2)
        halves = torch.stack((bytes_ & 15, bytes_ >> 4), dim=-2)  # (P, 16, inputs / 8, 2, 4)
        q = halves.reshape(-1, self.multipliers.shape[1], GROUP).to(torch.int8) - 8
        m = self.multipliers.transpose(1, 2).reshape(-1, self.multipliers.shape[1], 1)
        whole = (q * m.to(torch.int8)).flatten(1)
        return whole[: self.out_features, : self.in_features]

    def multiply(self, x: Tensor) -> Tensor:
        return calls.linear_int4(x, self.panels, self.multipliers, self.scales, self.bias)


FORMATS: dict[str, type[QuantizedLinear]] = {"int8": Int8Linear, "int4": Int4Linear}


def quantize(module: nn.Module, format: str, *, wide: bool = False) -> None:
    """Put integer weights in place of every linear layer of floats, one after the other.

    A layer's old weight is freed before the next one is rounded.
    """
    kind = FORMATS[format]
    for parent in [m for m in module.modules() if any(True for _ in m.children())]:
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, kind.of(child, wide=wide))
            del child


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (rows, width) in whole numbers of -127 to 127, and the rows' scales (rows, 1)."""
    most = x.abs().amax(dim=1, keepdim=True)
    inverse = torch.where(most > 0, 127 / most, 0)
    return (x * inverse).round(), most / 127


def round_groups(units: Tensor) -> tuple[Tensor, Tensor]:
    """Groups (outs, groups, 32) as m * q: q of -8 to 7 and the m (outs, groups) that errs least."""
    best = units.new_full(units.shape[:2], torch.inf)
    chosen, q = torch.zeros_like(best), torch.zeros_like(units)
    for m in range(1, 17):
        candidate = (units / m).round_().clamp_(-8, 7)
        error = (candidate * m - units).square_().sum(dim=-1)
        is_better = error < best
        best = torch.where(is_better, error, best)
        chosen[is_better] = m
        q = torch.where(is_better[..., None], candidate, q)
    return q, chosen


def _fill_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _divisor(scales: Tensor) -> Tensor:
    """(outs, 1): what to divide by, also for an output whose weights are all zero."""
    return torch.where(scales > 0, scales, 1)[:, None]


def _pad(x: Tensor, width: int) -> Tensor:
    """Fill up with zeros to this width and to whole panels of outputs."""
    rows = _fill_up(len(x), _OUTPUTS)
    return F.pad(x, (0, width - x.shape[1], 0, rows - len(x)))
