"""Statistics instead of states: the moments of every column of a table, and whose rows they are.

What streamed probes need comes from them: class means, and the covariance that classes share.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from phiscope.errors import NonFiniteError, StoreError
from phiscope.statistics.file import (
    Range,
    StatisticsFile,
    find_missing,
    join_ranges,
    write_statistics,
)
from phiscope.statistics.moments import Kind, Labels, Moments, Rows, read_rows
from phiscope.store.column import ColumnView, widen
from phiscope.store.reader import Store

_EMPTY: Mapping[str, Any] = MappingProxyType({})


class PointStatistics:
    """The moments of some columns, and which input rows they count."""

    def __init__(self, columns: Mapping[str, Moments], job: Mapping[str, Any] = _EMPTY) -> None:
        if not columns:
            raise ValueError("statistics of no columns")
        self.columns = dict(columns)
        self.job: dict[str, Any] = json.loads(json.dumps(dict(job)))
        """What was measured: JSON of the caller's; only statistics of one job merge."""
        self.ranges: tuple[Range, ...] = ()
        """The input rows [begin, end) that were counted, ascending."""
        self.trail: dict[str, Any] = {}
        """What a job that goes on wants to know of what was done; a merge leaves it out.

        Its `num_input_rows`, all of the corpus, is there as soon as the job has reached its end.
        """

    def __getitem__(self, column: str) -> Moments:
        if column not in self.columns:
            raise StoreError(f"no statistics of {column!r}; there are {', '.join(self.columns)}")
        return self.columns[column]

    def update(self, rows: Mapping[str, Rows], labels: Labels | None = None) -> None:
        """Add rows (n, width) to some columns.

        Raises `NonFiniteError` naming the column for a NaN or an infinity; nothing is added then.
        """
        pieces = {name: _read_column(name, rows[name], self[name]) for name in rows}
        named = None if labels is None else list(labels)
        for name, piece in pieces.items():
            if named is not None and len(named) != len(piece):
                raise ValueError(f"{len(piece)} rows of {name} came with {len(named)} labels")
        for name, piece in pieces.items():
            self[name].update(piece, named)

    def covers(self, row: int) -> bool:
        """Whether an input row is counted."""
        return any(begin <= row < end for begin, end in self.ranges)

    def settle(self) -> None:
        """Close each column's block, so that saving here or later gives the same bits."""
        for moments in self.columns.values():
            moments.settle()

    def cover(self, begin: int, end: int) -> None:
        """Note that the input rows [begin, end) are counted; `StoreError` if some were before."""
        self.ranges = join_ranges(self.ranges, [(begin, end)])

    def check_whole(self, path: Path) -> None:
        """Raise `StoreError` if rows of the corpus are missing: parts, or those of a killed job."""
        if not self.trail:
            return
        total = _read_total(self.trail, path)
        missing = find_missing(self.ranges, total)
        if missing is not None:
            raise StoreError(
                f"{path} has statistics of a part of the corpus: input rows {missing[0]} to"
                f" {missing[1] - 1} are missing; merge it with the other parts"
            )

    def merge(self, other: "PointStatistics") -> None:
        """Add all rows of another; `StoreError` for another job or rows counted before."""
        self._check_mergeable(other.kinds, other.job)
        self.ranges, self.trail = join_ranges(self.ranges, other.ranges), {}
        for name, moments in other.columns.items():
            self.columns[name].merge(moments)

    def class_differences(self, positive: str, negative: str) -> dict[str, Tensor]:
        """For each column the mean (width,) of one class less that of another, in fp64."""
        return {
            name: _class_mean(name, moments, positive) - _class_mean(name, moments, negative)
            for name, moments in self.columns.items()
        }

    def save(self, path: Path) -> None:
        """Write one .safetensors file, whole or not at all, from which `load` goes on bit by bit.

        This closes each column's block: a run that saves at the same rows gives the same bits.
        """
        write_statistics(path, self.columns, self.job, self.ranges, self.trail)

    @classmethod
    def load(cls, path: Path) -> "PointStatistics":
        """Read what `save` wrote; `StoreError` for anything else."""
        with StatisticsFile(path) as file:
            statistics = cls({name: file.read(name) for name in file.columns}, file.job)
            statistics.ranges, statistics.trail = file.ranges, file.trail
            return statistics

    def merge_file(self, path: Path) -> None:
        """As `merge`, with one column of the file in memory at a time."""
        with StatisticsFile(path) as file:
            self._check_mergeable(file.kinds, file.job, f"{path}: ")
            ranges = join_ranges(self.ranges, file.ranges, f"{path}: ")
            for name in file.columns:
                self.columns[name].merge(file.read(name))
            self.ranges, self.trail = ranges, {}

    @property
    def kinds(self) -> dict[str, Kind]:
        return {name: moments.kind for name, moments in self.columns.items()}

    def _check_mergeable(
        self, kinds: Mapping[str, Kind], job: Mapping[str, Any], source: str = ""
    ) -> None:
        """Raise `StoreError` naming the first difference between what both measured."""
        for what, ours, theirs in (
            ("job", _flatten(self.job), _flatten(job)),
            ("column", self.kinds, kinds),
        ):
            for key in sorted({*ours, *theirs}):
                if ours.get(key) != theirs.get(key):
                    raise StoreError(
                        f"{source}cannot merge other statistics than these: {what} {key!r} is"
                        f" {ours.get(key, 'absent')} here and {theirs.get(key, 'absent')} there"
                    )


def merge_statistics(paths: Sequence[Path]) -> PointStatistics:
    """The statistics of all rows of several files of one job; each row may be in one of them.

    Raises `StoreError` for parts of a job that do not make up the whole of it.
    """
    if not paths:
        raise ValueError("no files to merge")
    totals = {path: total for path in paths if (total := _find_total(path)) is not None}
    statistics = PointStatistics.load(paths[0])
    for path in paths[1:]:
        statistics.merge_file(path)
    if totals:
        path, total = max(totals.items(), key=lambda item: item[1])
        statistics.trail = {"num_input_rows": total}
        statistics.check_whole(path)
    return statistics


def measure_store(
    store: Store,
    columns: Iterable[str] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    diagonal: bool = True,
) -> PointStatistics:
    """The statistics of columns of a store, None: all; with the classes of texts by their id.

    A text that `labels` does not name is of no class. Only rows that are texts have labels.
    """
    if labels is not None and store.level != "texts":
        raise ValueError(f"{store.path} has one row per token; labels belong to texts")
    named = None if labels is None else [labels.get(name) for name in store.ids]
    measured = {
        name: _measure_column(store[name], named, diagonal)
        for name in (store.columns if columns is None else columns)
    }
    statistics = PointStatistics(measured, store.manifest["job"])
    statistics.cover(0, store.manifest["num_input_rows"])
    return statistics


def _measure_column(
    view: ColumnView, labels: Sequence[str | None] | None, diagonal: bool
) -> Moments:
    moments, begin = Moments(view.column.width, diagonal=diagonal), 0
    for chunk in view.chunks():
        end = begin + len(chunk)
        rows = widen(chunk, view.column.dtype).reshape(len(chunk), -1)
        moments.update(rows, None if labels is None else labels[begin:end])
        begin = end
    return moments


def _find_total(path: Path) -> int | None:
    """The rows of the corpus that a job's file is of; None where no job wrote it."""
    with StatisticsFile(path) as file:
        return _read_total(file.trail, path) if file.trail else None


def _read_total(trail: Mapping[str, Any], path: Path) -> int:
    if "num_input_rows" not in trail:
        raise StoreError(f"{path} is of a job that was interrupted; give its command again first")
    return int(trail["num_input_rows"])


def _flatten(job: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Each value under the names of all that it lies in: `model.weights`."""
    flat: dict[str, Any] = {}
    for key, value in job.items():
        inner = isinstance(value, Mapping)
        flat |= _flatten(value, f"{above}{key}.") if inner else {f"{above}{key}": value}
    return flat


def _read_column(name: str, rows: Rows, moments: Moments) -> Tensor:
    try:
        return read_rows(rows, moments.width)
    except NonFiniteError as error:
        raise NonFiniteError(f"{name}: {error}") from error


def _class_mean(column: str, moments: Moments, name: str) -> Tensor:
    means = moments.class_means
    if name not in means:
        known = ", ".join(means) or "none"
        raise StoreError(f"{column} has no rows of the class {name!r}; its classes: {known}")
    return means[name]
