"""Scoring of a store: id, score and keep of every row, into a JSONL or Parquet file.

Batch by batch over the mapped files, so that a store may be larger than the memory.
"""

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from phiscope.filtering.filter import Filter
from phiscope.store import Disk, Store, open_store
from phiscope.store.disk import make_error
from phiscope.store.index import read_ids
from phiscope.store.tensor_file import write_whole

SCHEMA = pa.schema([("id", pa.string()), ("score", pa.float64()), ("keep", pa.bool_())])
BATCH_ROWS = 8192
Write = Callable[[pa.RecordBatch], None]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What scoring a store came to."""

    out: Path
    num_rows: int
    num_kept: int

    def __str__(self) -> str:
        share = self.num_kept / self.num_rows if self.num_rows else 0.0
        return f"{self.out}: {self.num_rows:,} rows scored, {self.num_kept:,} kept ({share:.1%})"


def score_store(
    filter: Filter, store: Store | str | Path, out: str | Path, *, any_model: bool = False
) -> Scored:
    """Write the score of every row of a store, in its order, into a .jsonl or .parquet file.

    The file is there whole or not at all. Raises `FilterError` unless the store's states are of
    the model that the filter was fitted on, or `any_model`.
    """
    store, path = store if isinstance(store, Store) else open_store(store), Path(out)
    ending = next((ending for ending in _WRITERS if path.name.endswith(ending)), None)
    if ending is None:
        raise ValueError(f"{path}: the name must end in {' or '.join(_WRITERS)}")
    if not any_model:
        filter.origin.check_store(store)
    num_rows = num_kept = 0
    with _WRITERS[ending](path) as write:
        for batch in _score_batches(filter, store):
            write(batch)
            num_rows += batch.num_rows
            num_kept += batch.column("keep").true_count
    return Scored(out=path, num_rows=num_rows, num_kept=num_kept)


def _score_batches(filter: Filter, store: Store) -> Iterator[pa.RecordBatch]:
    begin = 0
    for batch in store.table().to_batches(max_chunksize=BATCH_ROWS):
        rows = slice(begin, begin + batch.num_rows)
        scores = filter.score_vectors(filter.features.read(store, rows))
        keep = filter.keep(scores)
        yield pa.record_batch([read_ids(batch), pa.array(scores), pa.array(keep)], schema=SCHEMA)
        begin = rows.stop


@contextmanager
def _write_jsonl(path: Path) -> Iterator[Write]:
    with write_whole(path) as write:

        def write_batch(batch: pa.RecordBatch) -> None:
            lines = [json.dumps(row, ensure_ascii=False) for row in batch.to_pylist()]
            write("".join(f"{line}\n" for line in lines).encode())

        yield write_batch


@contextmanager
def _write_parquet(path: Path) -> Iterator[Write]:
    import pyarrow.parquet as pq

    disk = Disk()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with pq.ParquetWriter(temporary, SCHEMA) as writer:
            yield writer.write_batch
        disk.rename(temporary, path)
    except OSError as error:
        raise make_error("write", path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    disk.sync_folder(path.absolute().parent)


_WRITERS = {".jsonl": _write_jsonl, ".parquet": _write_parquet}
