"""One column of a store, as an array that stays on the disk until its rows are asked for."""

from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike

from phiscope.store.mapped import MappedShards
from phiscope.store.schema import Column
from phiscope.store.scratch import Array

Rows = SupportsIndex | slice | Sequence[int] | Array


class ColumnView:
    """Rows (n, *shape); `view[i]`, `view[a:b]`, `view[[3, 1]]` and `np.asarray(view)` work.

    Consecutive rows of one record batch come as read-only arrays over the file, others as copies.
    bfloat16 comes as its bits in uint16; `float32` gives numbers.
    """

    def __init__(self, column: Column, shards: MappedShards) -> None:
        self.column = column
        self._shards = shards

    def __len__(self) -> int:
        return int(self._shards.bounds[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.column.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.column.numpy_dtype

    def __getitem__(self, rows: Rows) -> Array:
        if isinstance(rows, slice):
            begin, end, step = rows.indices(len(self))
            return self._join(begin, end) if step == 1 else self._take(np.arange(begin, end, step))
        chosen = self._check(np.asarray(rows))
        if chosen.ndim:
            return self._take(chosen)
        values: Array = self._join(int(chosen), int(chosen) + 1)[0]
        return values

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        values = self.numpy()
        return np.array(values, dtype=dtype, copy=copy)

    def chunks(self) -> Iterator[Array]:
        """All rows in order, in arrays over the files."""
        return (self._chunk(place) for place in range(len(self._shards)))

    def numpy(self) -> Array:
        """All rows, copied if they lie in several record batches."""
        return self[:]

    def float32(self, rows: Rows = slice(None)) -> Array:
        """Rows as float32, whatever the column's dtype."""
        return widen(self[rows], self.column.dtype)

    def _chunk(self, place: int) -> Array:
        return self._shards.array(place, self.column)

    def _join(self, begin: int, end: int) -> Array:
        """Consecutive rows."""
        bounds = self._shards.bounds
        first, last = np.searchsorted(bounds, [begin, max(begin, end - 1)], side="right") - 1
        pieces = [
            self._chunk(place)[max(begin - int(bounds[place]), 0) : end - int(bounds[place])]
            for place in range(first, last + 1)
            if begin < end
        ]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty((0, *self.column.shape), self.dtype)

    def _take(self, rows: Array) -> Array:
        """Rows in any order, as a copy."""
        values = np.empty((len(rows), *self.column.shape), self.dtype)
        places = np.searchsorted(self._shards.bounds, rows, side="right") - 1
        for place in np.unique(places):
            chosen = places == place
            values[chosen] = self._chunk(place)[rows[chosen] - self._shards.bounds[place]]
        return values

    def _check(self, rows: Array) -> Array:
        """Rows or one row, counted from the start; `IndexError` for one that does not exist."""
        if rows.dtype == bool and rows.shape == (len(self),):
            return np.flatnonzero(rows)
        if rows.ndim > 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise IndexError(f"rows are a mask of all, or whole numbers in a line, got {rows!r}")
        counted = np.where(rows < 0, rows + len(self), rows).astype(np.int64)
        wrong = rows[(counted < 0) | (counted >= len(self))]
        if wrong.size:
            raise IndexError(f"row {wrong.flat[0]} is not within the {len(self)} rows")
        return counted


def widen(values: Array, dtype: str) -> Array:
    """Values of a column's dtype as float32; those that are stay where they are."""
    if dtype == "bfloat16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)
