"""Scratch: the columns of one shard while batches fill them in any order.

They lie in an unlinked file, so neither memory nor the folder is left with anything, whatever
happens; positioned reads and writes may come from several threads.
"""

import os
import tempfile
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from phiscope.store.disk import make_error
from phiscope.store.schema import Column

Array = np.ndarray[Any, np.dtype[Any]]


class Scratch:
    """Rows 0 to `num_rows` of each column; a context manager."""

    def __init__(self, folder: Path, columns: Sequence[Column], num_rows: int) -> None:
        self.columns = {column.name: column for column in columns}
        self.num_rows = num_rows
        self.folder = folder
        ends = list(accumulate((c.row_bytes * num_rows for c in columns), initial=0))
        self._offsets = dict(zip(self.columns, ends, strict=False))
        self._filled = {name: np.zeros(num_rows, dtype=bool) for name in self.columns}
        self._file = _make_file(folder, ends[-1])

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def put(self, column: str, first_row: int, values: Array) -> None:
        """Fill consecutive rows with values (n, width) or (n, *shape) of the column's dtype."""
        kind = self.columns[column]
        rows = _as_rows(kind, values)
        end = first_row + len(rows)
        self._check_rows(first_row, end)
        self._write(_view_bytes(rows), self._place(kind, first_row))
        self._filled[column][first_row:end] = True

    def read(self, column: str, begin: int, end: int) -> Array:
        """Rows (end - begin, width)."""
        self._check_rows(begin, end)
        return self.gather(column, np.arange(begin, end))

    def gather(self, column: str, rows: Array) -> Array:
        """The rows of ascending numbers, (len(rows), width)."""
        kind = self.columns[column]
        values = np.empty((len(rows), kind.width), dtype=kind.numpy_dtype)
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        bounds = [0, *breaks.tolist(), len(rows)] if len(rows) else []
        for begin, end in pairwise(bounds):
            self._read(_view_bytes(values[begin:end]), self._place(kind, int(rows[begin])))
        return values

    def check_filled(self, rows: Array) -> None:
        """Raise `ValueError` if some column has no values for one of the rows."""
        for name, filled in self._filled.items():
            missing = rows[~filled[rows]]
            if len(missing):
                raise ValueError(f"column {name!r} has no values for row {missing[0]} of the shard")

    def _place(self, column: Column, row: int) -> int:
        return self._offsets[column.name] + row * column.row_bytes

    def _check_rows(self, begin: int, end: int) -> None:
        if not 0 <= begin <= end <= self.num_rows:
            raise ValueError(f"rows {begin} to {end} are not within the {self.num_rows} rows")

    def _write(self, view: memoryview, offset: int) -> None:
        try:
            while len(view):
                count = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise make_error("write a scratch file in", self.folder, error) from error

    def _read(self, view: memoryview, offset: int) -> None:
        try:
            while len(view):
                count = os.preadv(self._file.fileno(), [view], offset)
                assert count, "the file spans all rows"
                view, offset = view[count:], offset + count
        except OSError as error:
            raise make_error("read a scratch file in", self.folder, error) from error


def _make_file(folder: Path, size: int) -> IO[bytes]:
    """An unlinked file that is one hole, which takes no room until it is filled."""
    file = None
    try:
        file = tempfile.TemporaryFile(  # noqa: SIM115
            buffering=0, suffix=".tmp", prefix=".scratch-", dir=folder
        )
        file.truncate(size)
    except OSError as error:
        if file is not None:
            file.close()
        raise make_error("make a scratch file in", folder, error) from error
    return file


def _as_rows(column: Column, values: Array) -> Array:
    """The values as (n, width), contiguous."""
    if values.dtype != column.numpy_dtype:
        raise ValueError(f"{column.name!r} holds {column.numpy_dtype}, got {values.dtype}")
    if values.shape[1:] not in ((column.width,), column.shape):
        raise ValueError(f"a row of {column.name!r} is {column.shape}, got {values.shape[1:]}")
    return np.ascontiguousarray(values).reshape(len(values), column.width)


def _view_bytes(rows: Array) -> memoryview:
    """The memory of contiguous rows, as writable bytes."""
    data: memoryview = rows.reshape(-1).view(np.uint8).data
    return data
