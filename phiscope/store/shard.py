"""A shard's file: an Arrow IPC stream of record batches that can be mapped.

Its bytes depend on the rows, the schema and the values alone. It gets its name only when it is
whole and on the disk, so whoever finds the name finds the shard, from whichever machine it came.
"""

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from phiscope.errors import StoreError
from phiscope.store.disk import Disk
from phiscope.store.folder import shard_name
from phiscope.store.records import ShardOrigin, ShardRecord, make_record
from phiscope.store.schema import KEYS, Column, Schema
from phiscope.store.scratch import Array, Scratch

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


@dataclass(frozen=True, kw_only=True)
class ShardKeys:
    """The leading columns of a shard's rows, in order, as far as `Scratch` has rows."""

    ids: Any
    """Strings."""
    first: Any
    """`num_tokens` of texts, `pos` of tokens: integers."""
    second: Any
    """`text_sha256` of texts (strings), `token_id` of tokens (integers)."""

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.first) == len(self.second):
            raise ValueError(
                f"the leading columns need equal lengths, got {len(self.ids)}, "
                f"{len(self.first)} and {len(self.second)}"
            )

    def arrow(self, schema: Schema) -> list[pa.Array]:
        """The three columns as Arrow arrays."""
        values = (self.ids, self.first, self.second)
        pairs = zip(values, KEYS[schema.level], strict=True)
        return [_as_array(value, kind) for value, (_, kind) in pairs]


def write_shard(
    folder: Path,
    schema: Schema,
    number: int,
    keys: ShardKeys,
    scratch: Scratch,
    *,
    origin: ShardOrigin,
    kept: Array | None = None,
    disk: Disk | None = None,
) -> ShardRecord:
    """Write a shard's file; its record is for the store's writer, which may be elsewhere.

    `kept` (num_rows,) says which rows are written, None: all. At most two record batches are in
    memory at a time.
    """
    disk = disk or Disk()
    rows = np.arange(scratch.num_rows) if kept is None else np.flatnonzero(kept)
    _check_shard(schema, keys, scratch, rows, kept)
    temporary = folder / f".{shard_name(number)}.{secrets.token_hex(4)}.tmp"
    try:
        num_bytes, sha256 = _write_stream(disk, temporary, schema, keys, scratch, rows)
        disk.rename(temporary, folder / shard_name(number))
        disk.sync_folder(folder)
    except Exception:
        with suppress(StoreError):  # room for others, if the disk still allows it
            disk.remove(temporary)
        raise
    return make_record(
        origin, number=number, num_rows=len(rows), num_bytes=num_bytes, sha256=sha256
    )


def _check_shard(
    schema: Schema, keys: ShardKeys, scratch: Scratch, rows: Array, kept: Array | None
) -> None:
    if tuple(scratch.columns.values()) != schema.columns:
        raise ValueError("the scratch file has other columns than the store")
    for count in (len(keys.ids), scratch.num_rows if kept is None else len(kept)):
        if count != scratch.num_rows:
            raise ValueError(f"the shard has {scratch.num_rows} rows, got {count}")
    scratch.check_filled(rows)


def _write_stream(
    disk: Disk, path: Path, schema: Schema, keys: ShardKeys, scratch: Scratch, rows: Array
) -> tuple[int, str]:
    """Size and sha256 of what was written and has reached the disk."""
    digest, size = hashlib.sha256(), 0
    with disk.create(path) as file:
        for data in _make_messages(schema, keys, scratch, rows):
            disk.write(path, file, data)
            digest.update(data)
            size += len(data)
            del data  # before the next one is made
        disk.sync(path, file)
    return size, digest.hexdigest()


def _make_messages(schema: Schema, keys: ShardKeys, scratch: Scratch, rows: Array) -> Iterator[Any]:
    """The stream's messages, one buffer each."""
    arrow, leading = schema.arrow(), keys.arrow(schema)
    yield arrow.serialize()
    for begin in range(0, len(rows), schema.batch_rows):
        chosen = rows[begin : begin + schema.batch_rows]
        taken = [array.take(pa.array(chosen)) for array in leading]
        lists = (_make_list(kind, scratch.gather(kind.name, chosen)) for kind in schema.columns)
        yield pa.record_batch([*taken, *lists], schema=arrow).serialize()  # and lets go of them
    yield _END_OF_STREAM


def _make_list(column: Column, values: Array) -> pa.Array:
    """Rows (n, width) as an Arrow list of fixed size, not copied."""
    kind = column.arrow().type
    flat = pa.Array.from_buffers(kind.value_type, values.size, [None, pa.py_buffer(values)])
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def _as_array(values: Any, kind: pa.DataType) -> pa.Array:
    """Values as one Arrow array without nulls."""
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    array = array.cast(kind)
    if array.null_count:
        raise ValueError("the leading columns of a shard have no gaps")
    return array
