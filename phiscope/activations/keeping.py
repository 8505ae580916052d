"""Keeping: copies of what was seen at a point, and the proof that they hold what was seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from phiscope.activations.points import Point
from phiscope.activations.pooling import select_reducers
from phiscope.errors import NonFiniteError
from phiscope.finite import all_finite


@dataclass(frozen=True, kw_only=True)
class Keep:
    """How captured values are kept."""

    dtype: torch.dtype | None = None
    """None: as the model computed them; pooled ones in fp32 at least."""
    device: torch.device | str | None = "cpu"
    """None: where the model computed them."""
    overflow: Literal["refuse", "clamp"] = "refuse"
    """Values beyond the dtype's range: `NonFiniteError`, or its largest number and a count."""
    reducers: tuple[str, ...] = ()
    """Pool each sequence with these; empty: keep every token's row."""

    def __post_init__(self) -> None:
        select_reducers(self.reducers)
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise ValueError(f"states are kept in a floating dtype, not {self.dtype}")
        if self.overflow not in ("refuse", "clamp"):
            raise ValueError(f"overflow is refuse or clamp, not {self.overflow!r}")


@dataclass(frozen=True)
class Kept:
    """A copy of rows (n, ...), with what narrowing did to each."""

    values: Tensor
    narrowed: tuple[Tensor, Tensor] | None
    """Peaks and clamped, as below; None for a copy in the dtype of what was seen."""
    spans: Mapping[int, slice]
    """The rows of each sequence."""
    refuses: bool
    copied: torch.cuda.Event | None
    """Set when a copy that goes on in the background is done."""

    @cached_property
    def peaks(self) -> Tensor:
        """(n,): the largest magnitude of each row before it was clamped or rounded."""
        if self.narrowed is not None:
            return self.narrowed[0]
        return self.values.abs().flatten(1).amax(dim=1)

    @cached_property
    def clamped(self) -> Tensor:
        """(n,) int64: how many values of each row were clamped."""
        if self.narrowed is not None:
            return self.narrowed[1]
        return torch.zeros(len(self.values), dtype=torch.int64)

    def of(self, point: Point, sequence: int) -> Tensor:
        """A sequence's rows, alone; `NonFiniteError` if they are not what was seen."""
        self._check(point, sequence)
        if len(self.spans) == 1:
            return self.values
        with torch.inference_mode(False):
            return self.values[self.spans[sequence]].clone()

    def all(self, point: Point) -> Tensor:
        """All rows; `NonFiniteError` if some are not what was seen."""
        for sequence in self.spans:
            self._check(point, sequence)
        return self.values

    def count_clamped(self, sequence: int) -> int:
        self.wait()
        return int(self.clamped[self.spans[sequence]].sum())

    def _check(self, point: Point, sequence: int) -> None:
        self.wait()
        if self.narrowed is None and all_finite(self.values[self.spans[sequence]]):
            return
        peaks = self.peaks[self.spans[sequence]]
        peak = float(peaks.max()) if len(peaks) else 0.0
        if not peak < float("inf"):
            raise NonFiniteError(f"{point} of sequence {sequence} has a NaN or an infinity")
        dtype = self.values.dtype
        if self.refuses and peak > torch.finfo(dtype).max:
            raise NonFiniteError(
                f"{point} of sequence {sequence} reaches {peak:.6g}, beyond {dtype}; keep float32"
            )

    def wait(self) -> None:
        """Until a copy that goes on in the background is done."""
        if self.copied is not None:
            self.copied.synchronize()


def keep_rows(x: Tensor, spans: Mapping[int, slice], keep: Keep, *, masked: bool = False) -> Kept:
    """Copy x (n, ...) as asked; `masked` says that -inf is a value which belongs in it."""
    dtype = keep.dtype or x.dtype
    if not x.is_floating_point():
        return _keep_integers(x, spans, keep)
    if dtype == x.dtype and not masked:
        copied = _copy(x, dtype, keep.device)
        return Kept(copied, None, spans, refuses=False, copied=_mark(x))
    sizes = (x.masked_fill(x.isneginf(), 0) if masked else x).abs().flatten(1)
    peaks, clamped = sizes.amax(dim=1), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    limit = torch.finfo(dtype).max
    if keep.overflow == "clamp" and limit < torch.finfo(x.dtype).max:
        hidden = x.isneginf() & masked
        clamped = sizes.to(dtype).isinf().sum(dim=1)
        x = x.to(dtype).clamp(-limit, limit)  # not before: bfloat16 has no 65504
        x = x.masked_fill(hidden, float("-inf")) if masked else x
    return Kept(
        _copy(x, dtype, keep.device),
        (_copy(peaks, peaks.dtype, keep.device), _copy(clamped, clamped.dtype, keep.device)),
        spans,
        refuses=keep.overflow == "refuse",
        copied=_mark(x),
    )


def _keep_integers(x: Tensor, spans: Mapping[int, slice], keep: Keep) -> Kept:
    """Integers are kept as they are: nothing of them can be lost."""
    nothing = torch.zeros(len(x), dtype=torch.int64)
    copy = _copy(x, x.dtype, keep.device)
    return Kept(copy, (nothing.float(), nothing), spans, refuses=False, copied=_mark(x))


def _copy(x: Tensor, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    """A copy elsewhere; from a GPU to the CPU it goes on while the GPU computes."""
    target = x.device if device is None else torch.device(device)
    pinned = x.is_cuda and target.type == "cpu"
    with torch.inference_mode(False):  # autograd may keep it
        if target == x.device and dtype == x.dtype:
            return x.clone(memory_format=torch.contiguous_format)
        copy = torch.empty(x.shape, dtype=dtype, device=target, pin_memory=pinned)
        return copy.copy_(x.to(dtype) if pinned else x, non_blocking=pinned)


def _mark(x: Tensor) -> torch.cuda.Event | None:
    """An event after all that x's device was told to do so far."""
    if not x.is_cuda:
        return None
    event: torch.cuda.Event = torch.cuda.current_stream(x.device).record_event()
    return event
