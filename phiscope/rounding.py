"""Rows of a weight as integers in panels: the definition, in torch alone.

int8: weight = scale * q, with q from -127 to 127 and a scale for each output.
int4: weight = scale * m * q, with q from -8 to 7 and a whole m from 1 to 16 for every 32 inputs of
an output (progressive group quantisation, arXiv:2405.04532): m * q is an 8-bit number again.

Panels hold 16 outputs, as the kernels read them (kernels/source/integer_linear.cpp). An output with
a NaN or an infinity has no scale that is a number, and so gives none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 32
"""Inputs with a common multiplier; a layer is filled up with zeros to whole groups of them."""
PANEL = 16
OUTPUTS = 4 * PANEL
"""Outputs, too, are filled up: four panels are multiplied at a time."""
MULTIPLIERS = range(1, 17)


def round_int8(weight: Tensor, panels: Tensor, scales: Tensor) -> None:
    """Put rows (outs, inputs) into panels (outs / 16, inputs / 4, 64) and scales (outs,)."""
    units = _divide(weight, 127, panels.shape[1] * 4, scales)
    q = units.round_().clamp_(-127, 127) + 128
    _by_outputs(panels).copy_(q.view(-1, PANEL, panels.shape[1], 4).transpose(1, 2))


def round_int4(weight: Tensor, panels: Tensor, multipliers: Tensor, scales: Tensor) -> None:
    """As `round_int8`: panels (outs / 16, inputs / 8, 64), multipliers (outs / 16, groups, 16)."""
    units = _divide(weight, 120, panels.shape[1] * 8, scales)
    q, m = round_groups(units.view(len(units), -1, GROUP))
    halves = (q + 8).to(torch.uint8).view(-1, PANEL, panels.shape[1], 2, 4)
    _by_outputs(panels).copy_((halves[..., 0, :] | halves[..., 1, :] << 4).transpose(1, 2))
    multipliers.copy_(m.view(-1, PANEL, m.shape[1]).transpose(1, 2))


def round_groups(units: Tensor) -> tuple[Tensor, Tensor]:
    """Groups (outs, groups, 32) as m * q: q of -8 to 7 and the m (outs, groups) that errs least.

    Of several that err alike it is the smallest.
    """
    best = torch.full(units.shape[:2], torch.inf)
    chosen, q = torch.zeros_like(best), torch.zeros_like(units)
    for m in MULTIPLIERS:
        candidate = (units * (1 / m)).round_().clamp_(-8, 7)
        error = _sum_squares(candidate * m - units)
        is_better = error < best
        best = torch.where(is_better, error, best)
        chosen[is_better] = m
        q = torch.where(is_better[..., None], candidate, q)
    return q, chosen


def read_int8(panels: Tensor) -> Tensor:
    """The q (outs, inputs) int8 of panels."""
    q = _by_outputs(panels).transpose(1, 2).reshape(-1, panels.shape[1] * 4)
    return (q ^ 128).view(torch.int8)


def read_int4(panels: Tensor, multipliers: Tensor) -> Tensor:
    """The m * q (outs, inputs) int8 of panels."""
    bytes_ = _by_outputs(panels).transpose(1, 2)
    halves = torch.stack((bytes_ & 15, bytes_ >> 4), dim=-2)  # (P, 16, inputs / 8, 2, 4)
    q = halves.reshape(-1, multipliers.shape[1], GROUP).to(torch.int8) - 8
    m = multipliers.transpose(1, 2).reshape(-1, multipliers.shape[1], 1)
    return (q * m.to(torch.int8)).flatten(1)


def fill_up(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple


def _divide(weight: Tensor, largest: int, width: int, scales: Tensor) -> Tensor:
    """Fill in the scales, and give rows in units of them, filled up with zeros."""
    weight = weight.float()
    scales.copy_(weight.abs().amax(dim=1) / largest)
    divisor = torch.where(scales > 0, scales, 1)[:, None]
    units = torch.where(scales.isfinite()[:, None], weight / divisor, 0)
    rows = fill_up(len(units), OUTPUTS)
    return F.pad(units, (0, width - units.shape[1], 0, rows - len(units)))


def _sum_squares(errors: Tensor) -> Tensor:
    """(outs, groups) of (outs, groups, 32), in the kernel's order."""
    parts = errors.square().view(*errors.shape[:2], 2, 4, 4).sum(dim=2)
    a, b, c, d = parts.unbind(dim=-2)
    a, b, c, d = (((a + b) + c) + d).unbind(dim=-1)
    total: Tensor = (a + c) + (b + d)
    return total


def _by_outputs(panels: Tensor) -> Tensor:
    """(P, steps, 16, 4), a view."""
    return panels.view(*panels.shape[:2], PANEL, 4)
