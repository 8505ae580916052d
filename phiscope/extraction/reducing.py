"""Reducing: what each piece of a text adds to its pooled rows, and how the pieces become one row.

The mean over a text is a sum over its pieces: those computed within windows, and those of a prefix
that other texts share. A part is the fp32 sum (or the pick, or the maximum) over one piece's chosen
rows; it depends on no other rows of the batch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Part = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Rows (N, width), lengths (R,) int64 and the chosen tokens before each (R,): parts (R, width)."""
Join = Callable[[Sequence[Tensor], int], Tensor]
"""The parts (width,) of one text in order, and its number of chosen tokens: its row (width,)."""


def _sum(x: Tensor, lengths: Tensor, orders: Tensor) -> Tensor:
    return torch.segment_reduce(_wide(x), "sum", lengths=lengths, unsafe=True)


def _weighted_sum(x: Tensor, lengths: Tensor, orders: Tensor) -> Tensor:
    """Chosen token t (from 0) weighs t + 1, as in SGPT (Muennighoff 2022, section 3)."""
    before = orders - (lengths.cumsum(0) - lengths)
    shifts = before.repeat_interleave(lengths, output_size=len(x))
    weights = torch.arange(1, len(x) + 1, device=x.device) + shifts
    return _sum(_wide(x) * weights[:, None], lengths, orders)


def _max(x: Tensor, lengths: Tensor, orders: Tensor) -> Tensor:
    return torch.segment_reduce(_wide(x), "max", lengths=lengths, unsafe=True)


def _last(x: Tensor, lengths: Tensor, orders: Tensor) -> Tensor:
    return _wide(x[lengths.cumsum(0) - 1])


def _first(x: Tensor, lengths: Tensor, orders: Tensor) -> Tensor:
    return _wide(x[lengths.cumsum(0) - lengths])


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _join_mean(parts: Sequence[Tensor], count: int) -> Tensor:
    return _add(parts) / count


def _join_weighted(parts: Sequence[Tensor], count: int) -> Tensor:
    return _add(parts) / (count * (count + 1) // 2)


def _join_max(parts: Sequence[Tensor], count: int) -> Tensor:
    return torch.stack(list(parts)).amax(dim=0)


def _join_last(parts: Sequence[Tensor], count: int) -> Tensor:
    return parts[-1]


def _join_first(parts: Sequence[Tensor], count: int) -> Tensor:
    return parts[0]


def _add(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(dim=0)


PARTS: dict[str, Part] = {
    "mean": _sum,
    "weighted_mean": _weighted_sum,
    "max": _max,
    "last": _last,
    "first": _first,
}
JOINS: dict[str, Join] = {
    "mean": _join_mean,
    "weighted_mean": _join_weighted,
    "max": _join_max,
    "last": _join_last,
    "first": _join_first,
}
"""Both by the names of `phiscope.activations.pooling.REDUCERS`."""
