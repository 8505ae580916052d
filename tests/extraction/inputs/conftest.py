"""The same records in every format that holds columns, and the same texts in those that do not."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

RECORDS = [
    {"id": f"row {i}", "text": f"{i}: caf\u00e9 \U0001f600 'a', \"b\"\t" + "line\n" * (i % 3) + "."}
    for i in range(23)
]


@pytest.fixture(scope="session")
def records():
    return RECORDS


@pytest.fixture(scope="session", params=["jsonl", "csv", "tsv", "parquet", "arrow", "arrows", "ds"])
def table(request, tmp_path_factory):
    """A path of each format with the records; those with batches have several, of any size."""
    path = tmp_path_factory.mktemp("table") / f"table.{request.param}"
    WRITERS[request.param](path)
    return path


def _write_jsonl(path):
    path.write_text("\n".join(json.dumps(record) for record in RECORDS))


def _write_delimited(path, delimiter):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(["id", "text"])
        writer.writerows(record.values() for record in RECORDS)


def _write_arrow(path, new_writer):
    table = pa.Table.from_pylist(RECORDS)
    with pa.OSFile(str(path), "wb") as file, new_writer(file, table.schema) as writer:
        writer.write_table(table.slice(0, 10), max_chunksize=4)
        writer.write_table(table.slice(10), max_chunksize=7)


def _write_dataset(path):
    Dataset.from_list(RECORDS).save_to_disk(str(path), num_shards=3)


WRITERS = {
    "jsonl": _write_jsonl,
    "csv": lambda path: _write_delimited(path, ","),
    "tsv": lambda path: _write_delimited(path, "\t"),
    "parquet": lambda path: pq.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=5),
    "arrow": lambda path: _write_arrow(path, pa.ipc.new_file),
    "arrows": lambda path: _write_arrow(path, pa.ipc.new_stream),
    "ds": _write_dataset,
}
