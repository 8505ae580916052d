"""The reading side of a store: typed access by column, row, id and position, without copying.

`open_store("states")["resid_post.16.mean"][:100]` is the first hundred rows, over the file itself;
`store.get("text-7", "resid_post.16", pos=-1)` is a token's row, found by the text's id.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from phiscope.errors import StoreError
from phiscope.store.column import ColumnView, Rows
from phiscope.store.disk import make_error
from phiscope.store.folder import ERRORS_NAME
from phiscope.store.header import read_header
from phiscope.store.index import TextIndex, index_texts, index_tokens, name_choices
from phiscope.store.manifest import read_manifest, read_records
from phiscope.store.mapped import MappedShards, Span, check_size
from phiscope.store.schema import KEYS, Column, Level
from phiscope.store.scratch import Array

if TYPE_CHECKING:
    import torch


def open_store(path: str | Path) -> "Store":
    """Open a finished store; `StoreError` if it is unfinished, damaged or no store."""
    return Store(Path(path))


class Store:
    """A finished store; `store[column]` is a `ColumnView`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self.schema = read_header(self.manifest).schema
        self._records = read_records(self.manifest)
        batch_rows = self.manifest["batch_rows"]
        self._shards = MappedShards(path, self.schema, batch_rows, self._records)
        keys = [
            Column(name=name, dtype="int32", shape=())
            for name, kind in KEYS[self.level]
            if kind == pa.int32()
        ]
        self._columns = {column.name: column for column in (*self.schema.columns, *keys)}

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        return f"<Store {self.path}: {self.num_rows:,} {self.level}, {len(self.columns)} columns>"

    def __contains__(self, column: object) -> bool:
        return column in self._columns

    def __getitem__(self, column: str) -> ColumnView:
        """A column of states, or the `num_tokens`, `pos` or `token_id` beside them."""
        return ColumnView(self._find_column(column), self._shards)

    @property
    def level(self) -> Level:
        return self.schema.level

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns of states."""
        return tuple(column.name for column in self.schema.columns)

    @property
    def num_rows(self) -> int:
        return int(self._shards.bounds[-1])

    @property
    def num_tokens(self) -> int:
        return sum(record.num_tokens for record in self._records)

    @property
    def ids(self) -> list[str]:
        """The ids of the texts, in the store's order, each once also where tokens have rows."""
        return self._index.ids

    @cached_property
    def errors(self) -> list[dict[str, Any]]:
        """What went wrong with input rows, in their order."""
        path = self.path / ERRORS_NAME
        try:
            lines = path.read_text("utf-8").splitlines() if path.exists() else []
            return [json.loads(line) for line in lines]
        except OSError as error:
            raise make_error("read", path, error) from error
        except ValueError as error:
            raise StoreError(f"{path} is damaged: {error}") from error

    def row(self, id: str) -> int | slice:
        """The row of a text, or the rows of its tokens; `StoreError` for an unknown id."""
        rows = self._index.rows(id)
        return int(rows.start) if self.level == "texts" else rows

    def get(
        self,
        id: str,
        point: str,
        pos: int | slice | None = None,
        reducer: str | None = None,
    ) -> Array:
        """The states of one text: (*shape) pooled or at one position, else (positions, *shape).

        `pos` is a token's place in its text; negative ones count from the last that is stored.
        """
        column = self[point if reducer is None else f"{point}.{reducer}"]
        row = self.row(id)
        if not isinstance(row, slice):
            if pos is not None:
                raise StoreError(f"{self.path} has one row per text; leave out the position")
            return column[row]
        return column[row if pos is None else self._find_positions(id, row, pos)]

    def tensor(self, column: str, rows: Rows = slice(None)) -> "torch.Tensor":
        """Rows as a torch tensor of their own, bfloat16 restored."""
        import torch

        values = torch.from_numpy(np.array(self[column][rows]))
        return values.view(torch.bfloat16) if self._columns[column].dtype == "bfloat16" else values

    def table(self) -> pa.Table:
        """All rows as an Arrow table over the files."""
        batches = [self._shards.batch(place) for place in range(len(self._shards))]
        return pa.Table.from_batches(batches, schema=self.schema.arrow())

    def locate(self, column: str) -> list[Span]:
        """Where a column's rows lie: (path, offset, dtype, shape) for `numpy.memmap`."""
        found = self._find_column(column)
        return [self._shards.span(place, found) for place in range(len(self._shards))]

    def check(self) -> list[str]:
        """Compare every file with its sha256; the faults found, none if all is well."""
        faults = []
        for path, record in zip(self._shards.paths, self._records, strict=True):
            try:
                check_size(path, record)
                with path.open("rb") as file:
                    sound = hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
            except (OSError, StoreError) as error:
                faults.append(str(error))
                continue
            if not sound:
                faults.append(f"{path} is not what was written: its sha256 differs")
        return faults

    @cached_property
    def _index(self) -> TextIndex:
        batches = (self._shards.batch(place) for place in range(len(self._shards)))
        return index_texts(batches) if self.level == "texts" else index_tokens(batches)

    def _find_column(self, name: str) -> Column:
        if name not in self._columns:
            hint = name_choices(name, self._columns)
            raise StoreError(f"no column {name!r} in {self.path}; {hint}")
        return self._columns[name]

    def _find_positions(self, id: str, rows: slice, pos: int | slice) -> Rows:
        """The rows of a text that hold the positions asked for."""
        positions = self["pos"][rows]
        length = int(positions[-1]) + 1
        if isinstance(pos, slice):
            wanted = np.arange(*pos.indices(length))
            places = np.searchsorted(positions, wanted[np.isin(wanted, positions)])
            return _as_slice(rows.start + places)
        found = np.flatnonzero(positions == (pos + length if pos < 0 else pos))
        if len(found) == 0:
            span = f"{len(positions)} from {positions[0]} to {length - 1}"
            raise StoreError(f"text {id!r} has no position {pos} in the store; it has {span}")
        return int(rows.start + found[0])


def _as_slice(rows: Array) -> Rows:
    """Consecutive rows as a slice, which needs no copy."""
    if len(rows) and np.all(np.diff(rows) == 1):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows
