"""Moments: count, mean and covariance of rows that come in pieces, and count and mean by class.

Rows are gathered into blocks; each block is centred in fp64 and merged into fp64 totals after Chan,
Golub and LeVeque (1983): (n, m, S) + (n', m', S') has the scatter S + S' + nn'/(n+n') dd' with
d = m' - m, so a mean far from zero cancels nothing. A covariance is divided by n - 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phiscope.errors import NonFiniteError

BLOCK_ROWS = 512
"""Rows multiplied at a time: few, so that fp32 sums stay short."""

Rows = Tensor | NDArray[Any]
Labels = Iterable[str | None]
Kind = str


class Moments:
    """Moments of rows (n, width), of which none is kept.

    Counts, means and variances are computed in fp64. The off-diagonal covariances of fp64 rows
    are, too; those of narrower rows are fp32 products of centred blocks: the error, as a share of
    the product of both standard deviations, is at most 4e-5 and below 1e-7 as measured.
    Two splits of the same rows into pieces give the same bits as long as nothing is read between
    them: reading, merging and `state` close the block that is being filled.
    """

    def __init__(self, width: int, *, diagonal: bool = False) -> None:
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.width = width
        self.diagonal = diagonal
        """Keep variances only: a covariance of 2560 columns is 52 MB."""
        self._total = _Mean(width)
        self._scatter = torch.zeros(width if diagonal else (width, width), dtype=torch.float64)
        self._classes: dict[str, _Mean] = {}
        self._pieces: list[Tensor] = []
        self._labels: list[str | None] = []

    def update(self, rows: Rows, labels: Labels | None = None) -> None:
        """Add rows (n, width), each of the class its label names, or of none.

        Raises `NonFiniteError` for a NaN or an infinity; nothing is added then.
        """
        piece = read_rows(rows, self.width)
        named = [None] * len(piece) if labels is None else list(labels)
        if len(named) != len(piece):
            raise ValueError(f"{len(piece)} rows came with {len(named)} labels")
        self._pieces.append(piece)
        self._labels += named
        if len(self._labels) >= BLOCK_ROWS:
            self._close_blocks()

    def merge(self, other: "Moments") -> None:
        """Add all rows that another has seen."""
        if self.kind != other.kind:
            raise ValueError(f"cannot merge moments of {other.kind} into those of {self.kind}")
        self.settle()
        other.settle()
        self._add(other._total, other._scatter)
        for name, mean in other._classes.items():
            self._class(name).add(mean)

    @property
    def kind(self) -> Kind:
        """What both sides of a merge have in common: "2560 variances"."""
        return describe_kind(self.width, self.diagonal)

    @property
    def count(self) -> int:
        return self._total.count + len(self._labels)

    @property
    def mean(self) -> Tensor:
        """(width,) fp64."""
        self.settle(at_least=1)
        return self._total.mean.clone()

    @property
    def variance(self) -> Tensor:
        """(width,) fp64, divided by n - 1."""
        self.settle(at_least=2)
        scatter = self._scatter if self.diagonal else self._scatter.diagonal()
        return scatter / (self.count - 1)

    @property
    def covariance(self) -> Tensor:
        """(width, width) fp64, divided by n - 1 as `numpy.cov` does."""
        self._refuse_diagonal()
        self.settle(at_least=2)
        return self._scatter / (self.count - 1)

    @property
    def class_counts(self) -> dict[str, int]:
        self.settle()
        return {name: mean.count for name, mean in self._classes.items()}

    @property
    def class_means(self) -> dict[str, Tensor]:
        """(width,) fp64 of each class, in the order in which the classes were first seen."""
        self.settle()
        return {name: mean.mean.clone() for name, mean in self._classes.items()}

    @property
    def within_class_covariance(self) -> Tensor:
        """The covariance (width, width) that all classes are taken to share, as LDA has it.

        The scatter of all rows less that of the class means, divided by n - the number of classes.
        """
        self._refuse_diagonal()
        return self._scatter_within() / (self.count - len(self._classes))

    @property
    def within_class_variance(self) -> Tensor:
        """(width,): the diagonal of `within_class_covariance`."""
        scatter = self._scatter_within()
        scatter = scatter if self.diagonal else scatter.diagonal()
        return scatter / (self.count - len(self._classes))

    def state(self) -> dict[str, Tensor]:
        """All there is but the classes' names, as tensors that are not copied."""
        self.settle()
        means = [mean.mean for mean in self._classes.values()]
        counts = [mean.count for mean in self._classes.values()]
        return {
            "count": torch.tensor(self._total.count),
            "mean": self._total.mean,
            "scatter": self._scatter,
            "class_counts": torch.tensor(counts, dtype=torch.int64),
            "class_means": torch.stack(means) if means else torch.zeros((0, self.width)).double(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], classes: Sequence[str] = ()) -> "Moments":
        """Go on from a state, which is taken over and not copied, and the names of its classes."""
        moments = cls(len(state["mean"]), diagonal=state["scatter"].ndim == 1)
        moments._total = _Mean(moments.width, int(state["count"]), state["mean"])
        moments._scatter = state["scatter"]
        counts = state["class_counts"].tolist()
        for name, count, mean in zip(classes, counts, state["class_means"], strict=True):
            moments._classes[name] = _Mean(moments.width, count, mean.clone())
        return moments

    def _close_blocks(self) -> None:
        """Fold all whole blocks; what is left over waits for more."""
        rows, labels = torch.cat(self._pieces), self._labels
        whole = len(rows) - len(rows) % BLOCK_ROWS
        for begin in range(0, whole, BLOCK_ROWS):
            end = begin + BLOCK_ROWS
            self._fold(rows[begin:end], labels[begin:end])
        self._pieces, self._labels = [rows[whole:].clone()], labels[whole:]

    def settle(self, at_least: int = 0) -> None:
        """Fold the block that is being filled, and refuse if there were too few rows."""
        if self._labels:
            self._fold(torch.cat(self._pieces), self._labels)
            self._pieces, self._labels = [], []
        if self.count < at_least:
            raise ValueError(f"this takes {at_least} rows at least, and there were {self.count}")

    def _fold(self, rows: Tensor, labels: Sequence[str | None]) -> None:
        wide = rows.double()
        block = _mean_of(wide)
        for name in dict.fromkeys(labels):
            if name is not None:
                chosen = torch.tensor([label == name for label in labels])
                self._class(name).add(_mean_of(wide[chosen]))
        self._add(block, self._measure_scatter(wide.sub_(block.mean), rows.dtype))

    def _measure_scatter(self, centred: Tensor, dtype: torch.dtype) -> Tensor:
        squares = centred.square().sum(0)
        if self.diagonal:
            return squares
        factor = centred.to(dtype)
        scatter = (factor.T @ factor).double()
        scatter.diagonal().copy_(squares)
        return scatter

    def _add(self, mean: "_Mean", scatter: Tensor) -> None:
        """Chan's merge; scatter (width, width) or (width,)."""
        shift = mean.mean - self._total.mean
        weight = self._total.add(mean)
        self._scatter.add_(scatter)
        if self.diagonal:
            self._scatter.addcmul_(shift, shift, value=weight)
        else:
            self._scatter.addr_(shift, shift, alpha=weight)

    def _scatter_within(self) -> Tensor:
        """The scatter about the class means; `ValueError` if rows are of no class."""
        self.settle()
        unnamed = self.count - sum(self.class_counts.values())
        if unnamed or self.count <= len(self._classes):
            raise ValueError(
                f"a covariance within classes takes rows that all have a label and more rows than"
                f" classes; of {self.count} rows {unnamed} have no label,"
                f" and there are {len(self._classes)} classes"
            )
        within = self._scatter.clone()
        for each in self._classes.values():
            shift = each.mean - self._total.mean
            outer = shift.square() if self.diagonal else torch.outer(shift, shift)
            within.sub_(outer, alpha=each.count)
        return within

    def _class(self, name: str) -> "_Mean":
        return self._classes.setdefault(name, _Mean(self.width))

    def _refuse_diagonal(self) -> None:
        if self.diagonal:
            raise ValueError("these moments hold variances only; make them with diagonal=False")


class _Mean:
    """A count and a mean (width,) fp64, to which others are added."""

    def __init__(self, width: int, count: int = 0, mean: Tensor | None = None) -> None:
        self.count = count
        self.mean = torch.zeros(width, dtype=torch.float64) if mean is None else mean

    def add(self, other: "_Mean") -> float:
        """Returns nn'/(n+n'), the weight of the shift between both."""
        together = self.count + other.count
        if together == 0:
            return 0.0
        weight = self.count * (other.count / together)
        self.mean = self.mean + (other.mean - self.mean) * (other.count / together)
        self.count = together
        return weight


def describe_kind(width: int, diagonal: bool) -> Kind:
    return f"{width} variances" if diagonal else f"a covariance of {width} columns"


def _mean_of(wide: Tensor) -> _Mean:
    return _Mean(wide.shape[1], len(wide), wide.mean(0))


def read_rows(rows: Rows, width: int) -> Tensor:
    """A copy of the rows in fp32 or fp64, on the CPU."""
    tensor = rows.detach().cpu() if isinstance(rows, Tensor) else torch.tensor(np.asarray(rows))
    if tensor.ndim != 2 or tensor.shape[1] != width or not tensor.is_floating_point():
        shape = tuple(tensor.shape)
        raise ValueError(
            f"rows must be floating, of shape (n, {width}), got {tensor.dtype} {shape}"
        )
    wide = torch.promote_types(tensor.dtype, torch.float32)
    copy = tensor.to(wide, copy=True)
    if not copy.sum().isfinite():  # a sum of finite numbers may overflow, so look closer
        _refuse_non_finite(copy)
    return copy


def _refuse_non_finite(rows: Tensor) -> None:
    faulty = rows.isfinite().all(dim=1).logical_not().nonzero()
    if len(faulty):
        raise NonFiniteError(f"row {int(faulty[0])} has a NaN or an infinity")
