"""Pooling: the tokens of each sequence become one row, on the flat matrix and without padding.

Sums run over one sequence's rows in order, in fp32 at least, so a sequence's result depends on its
own rows alone: not on its neighbours, the padding that others need, or the number of threads.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from phiscope.kernels import build, calls

Reducer = Callable[[Tensor, Tensor], Tensor]
"""Takes rows (N, ...) in fp32 or fp64 and lengths (S,) int64, returns (S, ...)."""


def pool(x: Tensor, lengths: Sequence[int], reducer: str) -> Tensor:
    """Reduce rows (N, ...) of sequences laid end to end to (S, ...), in fp32 at least."""
    select_reducers([reducer])
    if sum(lengths) != len(x) or min(lengths, default=0) < 1:
        raise ValueError(f"{len(x)} rows cannot be sequences of lengths {list(lengths)}")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    counts = torch.tensor(lengths, dtype=torch.int64, device=x.device)
    return REDUCERS[reducer](wide.flatten(1), counts).reshape(-1, *x.shape[1:])


def select_reducers(names: Iterable[str]) -> tuple[str, ...]:
    """The reducers named, each once; `ValueError` for one that does not exist."""
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in REDUCERS:
            raise ValueError(f"no pooling {name!r}; choose from {', '.join(REDUCERS)}")
    return chosen


def normalize(vectors: Tensor) -> Tensor:
    """Scale each row of (S, hidden) to length 1; a row of zeros stays zero."""
    peaks = vectors.abs().amax(dim=-1, keepdim=True)  # squares of tiny or huge numbers get lost
    vectors = vectors / torch.where(peaks == 0, 1, peaks)
    lengths = vectors.norm(dim=-1, keepdim=True)
    return vectors / torch.where(lengths == 0, 1, lengths)


def _mean(x: Tensor, lengths: Tensor) -> Tensor:
    return _sum(x, lengths) / lengths[:, None]


def _weighted_mean(x: Tensor, lengths: Tensor) -> Tensor:
    """Token t of T weighs (t + 1) / (1 + ... + T), as in SGPT (Muennighoff 2022, section 3)."""
    ends = lengths.cumsum(0)
    firsts = (ends - lengths).repeat_interleave(lengths, output_size=len(x))
    weights = torch.arange(1, len(x) + 1, device=x.device) - firsts
    totals = lengths * (lengths + 1) // 2
    return _sum(x * weights[:, None], lengths) / totals[:, None]


def _max(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.segment_reduce(x, "max", lengths=lengths, unsafe=True)


def _last(x: Tensor, lengths: Tensor) -> Tensor:
    return x[lengths.cumsum(0) - 1]


def _first(x: Tensor, lengths: Tensor) -> Tensor:
    return x[lengths.cumsum(0) - lengths]


def _sum(x: Tensor, lengths: Tensor) -> Tensor:
    is_plain = x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad
    if is_plain and build.find_obstacle() is None:
        return calls.sum_sequences(x, lengths)
    return torch.segment_reduce(x, "sum", lengths=lengths, unsafe=True)


REDUCERS: dict[str, Reducer] = {
    "mean": _mean,
    "last": _last,
    "weighted_mean": _weighted_mean,
    "max": _max,
    "first": _first,
}
