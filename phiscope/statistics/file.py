"""The file of statistics: a .safetensors file that says whose rows it counts.

For each column `c` there are the tensors `c/count`, `c/mean`, `c/scatter` (the sum over the rows of
the outer product of their distance from the mean with itself, or of its squares where only
variances are kept), `c/class_counts` and `c/class_means`; the metadata has the classes' names, the
job and the input rows, as JSON.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phiscope.checkpoint.safetensors_format import read_header, read_metadata
from phiscope.checkpoint.stored import StoredTensor, WeightFile
from phiscope.errors import CheckpointError, StoreError
from phiscope.statistics.moments import Kind, Moments, describe_kind
from phiscope.store.tensor_file import TensorEntry, write_tensor_file

FORMAT = "phiscope-statistics"
VERSION = 1
Range = tuple[int, int]
_DTYPES = {torch.int64: "I64", torch.float64: "F64"}
_TENSORS = ("count", "mean", "scatter", "class_counts", "class_means")


def write_statistics(
    path: Path,
    columns: Mapping[str, Moments],
    job: Mapping[str, Any],
    ranges: Iterable[Range],
    trail: Mapping[str, Any],
) -> None:
    """Write a file whole or not at all; its bytes depend on what is given alone."""
    entries = {
        f"{name}/{key}": _make_entry(tensor)
        for name, moments in columns.items()
        for key, tensor in moments.state().items()
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "job": json.dumps(job, sort_keys=True),
        "ranges": json.dumps(list(ranges)),
        "trail": json.dumps(trail, sort_keys=True),
        "columns": json.dumps({name: list(each.class_counts) for name, each in columns.items()}),
    }
    write_tensor_file(path, entries, metadata)


class StatisticsFile:
    """A file of statistics held open, of which nothing is believed unchecked; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _store_errors():
            self._file = WeightFile(path)
        try:
            self._read_facts()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "StatisticsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def kinds(self) -> dict[str, Kind]:
        """As `Moments.kind`, of each column."""
        shapes = {name: self._tensors[f"{name}/scatter"].shape for name in self.columns}
        return {name: describe_kind(shape[0], len(shape) == 1) for name, shape in shapes.items()}

    def read(self, column: str) -> Moments:
        """The moments of one column, in memory."""
        with _store_errors():
            state = {key: self._tensors[f"{column}/{key}"].read() for key in _TENSORS}
        return Moments.from_state(state, self.columns[column])

    def _read_facts(self) -> None:
        with _store_errors():
            self._tensors = read_header(self._file)
            metadata = read_metadata(self._file)
        if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
            raise StoreError(f"{self.path} holds no statistics of version {VERSION}")
        try:
            self._parse(metadata)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{self.path} holds damaged statistics: {error!r}") from error

    def _parse(self, metadata: Mapping[str, str]) -> None:
        self.job: dict[str, Any] = dict(json.loads(metadata["job"]))
        ranges = [(int(begin), int(end)) for begin, end in json.loads(metadata["ranges"])]
        self.ranges = join_ranges((), ranges)
        self.trail: dict[str, Any] = dict(json.loads(metadata["trail"]))
        self.columns: dict[str, list[str]] = dict(json.loads(metadata["columns"]))
        """The classes of each column."""
        if not self.columns:
            raise ValueError("no columns")
        for column, classes in self.columns.items():
            _check_shapes(column, len(classes), self._tensors)


def _check_shapes(column: str, num_classes: int, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise `KeyError` or `ValueError` unless a column's tensors are there and fit each other."""
    stored = {key: tensors[f"{column}/{key}"] for key in _TENSORS}
    width = stored["mean"].shape[0]
    wanted: dict[str, tuple[tuple[int, ...], ...]] = {
        "count": ((),),
        "mean": ((width,),),
        "scatter": ((width,), (width, width)),
        "class_counts": ((num_classes,),),
        "class_means": ((num_classes, width),),
    }
    for key, shapes in wanted.items():
        dtype = torch.int64 if "count" in key else torch.float64
        if stored[key].shape not in shapes or stored[key].dtype != dtype:
            raise ValueError(f"{column}/{key} is {stored[key].dtype} {stored[key].shape}")


@contextmanager
def _store_errors() -> Iterator[None]:
    """What is wrong with a file of tensors is wrong with the statistics in it."""
    try:
        yield
    except CheckpointError as error:
        raise StoreError(str(error)) from error


def _make_entry(tensor: Tensor) -> TensorEntry:
    return TensorEntry(_DTYPES[tensor.dtype], tuple(tensor.shape), [tensor.numpy()])


def join_ranges(
    known: Iterable[Range], more: Iterable[Range], source: str = ""
) -> tuple[Range, ...]:
    """Ascending ranges, touching ones as one; `StoreError` if two have a row in common."""
    joined: list[Range] = []
    for begin, end in sorted([*known, *more]):
        if begin == end:
            continue
        if not 0 <= begin < end:
            raise ValueError(f"there are no input rows {begin} to {end}")
        if joined and begin < joined[-1][1]:
            twice = min(end, joined[-1][1])
            raise StoreError(f"{source}input rows {begin} to {twice} would be counted twice")
        if joined and begin == joined[-1][1]:
            begin = joined.pop()[0]
        joined.append((begin, end))
    return tuple(joined)


def find_missing(ranges: Iterable[Range], total: int) -> Range | None:
    """The first input rows [begin, end) below `total` that no range has; None if all are there."""
    reached = 0
    for begin, end in sorted(ranges):
        if begin > reached:
            return reached, begin
        reached = max(reached, end)
    return None if reached >= total else (reached, total)
