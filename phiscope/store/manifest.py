"""The files that make a folder of shards a finished store: its manifest, and what others read.

`dataset_info.json` and `state.json` are those of a dataset that Hugging Face's `save_to_disk`
wrote; the columns' types are left to the Arrow schema, which every version reads.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phiscope.errors import StoreError
from phiscope.store.disk import Disk
from phiscope.store.folder import ERRORS_NAME, JOURNAL_NAME, MANIFEST_NAME, data_name
from phiscope.store.header import StoreHeader
from phiscope.store.records import ShardRecord, read_record
from phiscope.strict import read_json_object

MAX_MANIFEST_BYTES = 2**30

_FORMAT = {"format": "phiscope-store", "version": 1}


def make_manifest(
    header: StoreHeader, records: Sequence[ShardRecord], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """All about a finished store whose shards these are, in order."""
    value = {
        **_FORMAT,
        **header.to_json(),
        "batch_rows": header.schema.batch_rows,
        "num_rows": sum(record.num_rows for record in records),
        "num_tokens": sum(record.num_tokens for record in records),
        "num_input_rows": sum(record.end - record.begin for record in records),
        "input_sha256": _join_hashes(record.input_sha256 for record in records),
        "shards": [record.to_json(errors=False) for record in records],
        "clamped": _sum_clamped(records),
        "num_errors": sum("error" in entry for record in records for entry in record.errors),
        "verification": None,
    }
    twice = sorted(value.keys() & extra.keys())
    if twice:
        raise ValueError(f"the manifest has a {twice[0]!r} of its own")
    return {**value, **extra}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished store; `StoreError` if the folder is none."""
    path = folder / MANIFEST_NAME
    if not path.exists():
        if (folder / JOURNAL_NAME).exists():
            raise StoreError(f"{folder} is an unfinished store; resume its job")
        raise StoreError(f"{folder} is no store, as it has no {MANIFEST_NAME}")
    value = read_json_object(path, MAX_MANIFEST_BYTES, StoreError)
    if {name: value.get(name) for name in _FORMAT} != _FORMAT:
        raise StoreError(f"{path} is no manifest that this version of phiscope can read")
    return value


def read_records(manifest: Mapping[str, Any]) -> list[ShardRecord]:
    """The shards of a finished store, in order; `StoreError` if the manifest has no such list."""
    values, batch_rows = manifest.get("shards"), manifest.get("batch_rows")
    if not isinstance(values, list) or type(batch_rows) is not int or batch_rows < 1:
        raise StoreError(f"the manifest lacks shards or batch_rows; its keys are {list(manifest)}")
    return [read_record(value) for value in values]


def set_verification(folder: Path, value: Mapping[str, Any], disk: Disk | None = None) -> None:
    """Keep the result of a verification in the manifest of a finished store."""
    manifest = {**read_manifest(folder), "verification": value}
    (disk or Disk()).replace_json(folder / MANIFEST_NAME, manifest)


def write_dataset_files(folder: Path, records: Sequence[ShardRecord], disk: Disk) -> None:
    """Make the folder one that `datasets.load_from_disk` opens."""
    names = [data_name(record.number, len(records)) for record in records]
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": _join_hashes(record.sha256 for record in records)[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    info = {"citation": "", "description": "", "homepage": "", "license": ""}
    disk.replace_json(folder / "dataset_info.json", info)
    disk.replace_json(folder / "state.json", state)


def write_errors(folder: Path, records: Iterable[ShardRecord], disk: Disk) -> None:
    """Write what went wrong with input rows, in their order; no file if nothing did."""
    entries = [entry for record in records for entry in record.errors]
    if entries:
        entries.sort(key=lambda entry: int(entry["index"]))
        lines = [json.dumps(dict(entry), sort_keys=True) for entry in entries]
        disk.replace(folder / ERRORS_NAME, ("\n".join(lines) + "\n").encode())


def _join_hashes(hashes: Iterable[str]) -> str:
    """The sha256 of hex digests, one after the other."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _sum_clamped(records: Iterable[ShardRecord]) -> dict[str, int]:
    total: dict[str, int] = {}
    for record in records:
        for column, count in record.clamped.items():
            total[column] = total.get(column, 0) + count
    return total
