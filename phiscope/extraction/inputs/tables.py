"""Parquet, Arrow files and streams, datasets saved to disk, and data frames: batches of columns.

Arrow is mapped into memory and Parquet read a page at a time, the wanted columns alone, so memory
holds a batch whatever the size of the table.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phiscope.errors import InputError
from phiscope.extraction.inputs.fields import list_names
from phiscope.extraction.inputs.sources import Reader, Unread, reading

_BATCH_ROWS = 256
_BUFFER_BYTES = 2**20
_FILE_MAGIC = b"ARROW1"
_AS_BYTES = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


def read_parquet(path: Path) -> Reader:
    """A Parquet file."""
    with reading(path), pq.ParquetFile(path) as file:
        columns, num_rows = _describe(path, file.schema_arrow), int(file.metadata.num_rows)
    return Reader(open=partial(_open_parquet, path), columns=columns, count=lambda: num_rows)


def read_arrow(path: Path) -> Reader:
    """An Arrow IPC file or an Arrow IPC stream."""
    return _read_arrow_files(path, [path])


def read_dataset(folder: Path) -> Reader:
    """A Hugging Face dataset that was saved to disk."""
    if (folder / "dataset_dict.json").exists():
        splits = _read_json(folder / "dataset_dict.json").get("splits")
        names = list_names(splits) if isinstance(splits, list) else "unknown"
        raise InputError(f"{folder} holds several splits; give the folder of one of them: {names}")
    state = _read_json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise InputError(f"{folder} is a selection of rows; save it after flatten_indices()")
    return _read_arrow_files(folder, _list_data_files(folder, state))


def read_frame(frame: Any) -> Reader:
    """Whatever exports Arrow streams of columns: tables and data frames, a reader of batches."""
    repeatable = not isinstance(frame, pa.RecordBatchReader)
    with reading("the table"):
        batches = pa.RecordBatchReader.from_stream(frame) if repeatable else frame
        described = _describe("the table", batches.schema)

    def open_at(start: int, columns: Sequence[str]) -> Iterator[Unread]:
        with reading("the table"):
            batches = pa.RecordBatchReader.from_stream(frame) if repeatable else frame
            chosen = (batch.select(columns) for batch in batches)
            yield from _read_batches("the table", chosen, start)

    return Reader(
        open=open_at,
        columns=described,
        count=(lambda: len(frame)) if repeatable else None,
        repeatable=repeatable,
    )


def _open_parquet(path: Path, start: int, columns: Sequence[str]) -> Iterator[Unread]:
    # Without these, a reader holds whole column chunks, and those of the groups ahead.
    lean = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False}
    with reading(path), pq.ParquetFile(path, **lean) as file:
        groups = list(range(file.num_row_groups))
        while groups and start >= (size := file.metadata.row_group(groups[0]).num_rows):
            start -= size
            del groups[0]
        batches = file.iter_batches(_BATCH_ROWS, groups, columns=columns, use_threads=False)
        yield from _read_batches(path, batches, start)


def _read_arrow_files(name: Path, paths: Sequence[Path]) -> Reader:
    with reading(paths[0]), pa.memory_map(str(paths[0])) as file:
        described = _describe(paths[0], _open_arrow(file, None).schema)

    def count() -> int:
        first = list(described)[:1]  # the others need not even be decompressed
        return sum(batch.num_rows for path in paths for batch in _iterate_arrow(path, first))

    def open_at(start: int, columns: Sequence[str]) -> Iterator[Unread]:
        batches = (batch for path in paths for batch in _iterate_arrow(path, columns))
        return _read_batches(name, batches, start)

    return Reader(open=open_at, columns=described, count=count)


def _iterate_arrow(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with reading(path), pa.memory_map(str(path)) as file:
        names = _open_arrow(file, None).schema.names
        if absent := set(columns).difference(names):
            raise InputError(f"{path}: no column {min(absent)!r}; there are {list_names(names)}")
        options = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns])
        batches = _open_arrow(file, options)
        if isinstance(batches, pa.RecordBatchStreamReader):
            yield from batches
        else:
            yield from map(batches.get_batch, range(batches.num_record_batches))


def _open_arrow(file: pa.MemoryMappedFile, options: pa.ipc.IpcReadOptions | None) -> Any:
    file.seek(0)
    is_file = file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    file.seek(0)
    open_ipc = pa.ipc.open_file if is_file else pa.ipc.open_stream
    return open_ipc(file, options=options)


def _read_batches(name: object, batches: Iterable[pa.RecordBatch], start: int) -> Iterator[Unread]:
    for batch in batches:
        if start < batch.num_rows:
            _check_columns(name, batch)
        for row in range(min(start, batch.num_rows), batch.num_rows):
            yield partial(_read_cells, batch, row)
        start = max(0, start - batch.num_rows)


def _check_columns(name: object, batch: pa.RecordBatch) -> None:
    """Raise `InputError` for places outside the data, which Arrow would follow.

    Strings are checked as bytes: what is not UTF-8 is a fault of its row alone.
    """
    for column in batch.columns:
        plain = _AS_BYTES.get(column.type)
        with reading(name):
            (column if plain is None else column.view(plain)).validate(full=True)


def _read_cells(batch: pa.RecordBatch, row: int) -> Mapping[str, object]:
    pairs = zip(batch.schema.names, batch.columns, strict=True)
    return {name: _read_value(column[row]) for name, column in pairs}


def _read_value(value: Any) -> object:
    """A value as Python's own; a string that is not UTF-8 as its bytes."""
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes()


def _describe(name: object, schema: pa.Schema) -> dict[str, bool]:
    """The columns, and whether they hold strings; no two may have one name."""
    columns = {field.name: _holds_strings(field.type) for field in schema}
    if len(columns) < len(schema):
        twice = next(column for column in columns if schema.names.count(column) > 1)
        raise InputError(f"{name} has two columns {twice!r}; rename one of them")
    return columns


def _holds_strings(dtype: pa.DataType) -> bool:
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    return dtype in _AS_BYTES or dtype in _AS_BYTES.values()


def _list_data_files(folder: Path, state: Mapping[str, Any]) -> list[Path]:
    try:
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'state.json'} names no data files; save it again") from error
    wrong = next((name for name in names if Path(name).name != name), None)
    if wrong is not None or not names:
        raise InputError(f"{folder / 'state.json'} names no file in its folder: {wrong!r}")
    return [folder / name for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with reading(path):
            value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not sound JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object")
    return value
