"""The record batches of a store, mapped: arrays over the files themselves, nothing copied.

Sizes are compared with the manifest before a file is mapped, as touching a map of a file that was
cut is a SIGBUS. A shard is mapped when one of its rows is first wanted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from phiscope.errors import StoreError
from phiscope.store.folder import data_name
from phiscope.store.records import ShardRecord
from phiscope.store.schema import Column, Schema
from phiscope.store.scratch import Array


class Span(NamedTuple):
    """Rows of a column in a file, as `numpy.memmap` takes them."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class MappedShard:
    """The batches of one file, and the address that its first byte has."""

    path: Path
    batches: tuple[pa.RecordBatch, ...]
    address: int


class MappedShards:
    """All batches of a store, in the order of their rows."""

    def __init__(
        self, folder: Path, schema: Schema, batch_rows: int, records: Sequence[ShardRecord]
    ) -> None:
        self.paths = [folder / data_name(k, len(records)) for k in range(len(records))]
        smallest = 4 + sum(column.row_bytes for column in schema.columns)
        for path, record in zip(self.paths, records, strict=True):
            check_size(path, record)
            if record.num_rows * smallest > record.bytes:
                raise StoreError(f"{path} is too short for the {record.num_rows:,} rows on record")
        self._schema = schema.arrow()
        self._lengths = [_split(record.num_rows, batch_rows) for record in records]
        self._places = [(k, i) for k, sizes in enumerate(self._lengths) for i in range(len(sizes))]
        sizes = [size for sizes in self._lengths for size in sizes]
        self.bounds = np.array([0, *accumulate(sizes)], dtype=np.int64)
        """The first row of each batch, and the number of rows."""
        self._open: dict[int, MappedShard] = {}

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._places)

    def batch(self, place: int) -> pa.RecordBatch:
        shard, i = self._places[place]
        return self._map(shard).batches[i]

    def array(self, place: int, column: Column) -> Array:
        """A batch's rows (n, *shape) of a column of numbers, read-only, over the file."""
        data = self.batch(place).column(column.name).buffers()[-1]
        length = self._length(place)
        flat = np.frombuffer(data, column.numpy_dtype, length * column.width)
        return flat.reshape(length, *column.shape)

    def span(self, place: int, column: Column) -> Span:
        """Where those rows lie."""
        data = self.batch(place).column(column.name).buffers()[-1]
        mapped = self._map(self._places[place][0])
        shape = (self._length(place), *column.shape)
        return Span(mapped.path, data.address - mapped.address, column.numpy_dtype, shape)

    def _length(self, place: int) -> int:
        return int(self.bounds[place + 1] - self.bounds[place])

    def _map(self, shard: int) -> MappedShard:
        if shard not in self._open:
            path, lengths = self.paths[shard], self._lengths[shard]
            self._open[shard] = _map_file(path, self._schema, lengths)
        return self._open[shard]


def check_size(path: Path, record: ShardRecord) -> None:
    """Raise `StoreError` unless the file has the size on record."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    if size != record.bytes:
        raise StoreError(f"{path} is damaged: it has {size:,} bytes of {record.bytes:,}")


def _split(num_rows: int, batch_rows: int) -> list[int]:
    """The rows of each batch of a shard."""
    return [min(batch_rows, num_rows - begin) for begin in range(0, num_rows, batch_rows)]


def _map_file(path: Path, schema: pa.Schema, lengths: Sequence[int]) -> MappedShard:
    """Map a file; `StoreError` if it is not the shard that it should be."""
    try:
        with pa.memory_map(str(path)) as source:  # the map outlives the descriptor
            buffer = source.read_buffer()
        with pa.ipc.open_stream(buffer) as stream:
            sound = stream.schema.equals(schema, check_metadata=True)
            batches = tuple(stream)
        for batch in batches:
            batch.validate()
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error
    sound = sound and [batch.num_rows for batch in batches] == list(lengths)
    if not sound or any(column.null_count for batch in batches for column in batch):
        raise StoreError(f"{path} has other columns or rows than the manifest says; it is damaged")
    return MappedShard(path, batches, buffer.address)
