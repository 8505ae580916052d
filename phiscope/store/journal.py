"""The journal of an unfinished store: what a resumed job may trust, one JSON line each.

The first line is the store's header, written with the file; every later line is a shard that is
whole and on the disk, or the number of shards that the whole job has. A last line that was torn by
a crash counts as not written.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phiscope.errors import StoreError
from phiscope.store.disk import Disk, make_error
from phiscope.store.folder import JOURNAL_NAME
from phiscope.store.header import StoreHeader, read_header
from phiscope.store.records import ShardRecord, read_record

_FORMAT = {"format": "phiscope-journal", "version": 1}


@dataclass(frozen=True, kw_only=True)
class Entries:
    """What a journal says, up to byte `end`."""

    header: StoreHeader
    records: dict[int, ShardRecord]
    num_shards: int | None
    """Of the whole job, where a part of it has said so."""
    end: int


class Journal:
    """A journal open for appending; after a failed append it takes no more."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path = path
        self._disk = disk
        self._file = disk.extend(path)
        self._sound = True

    def append(self, value: Mapping[str, Any]) -> None:
        """Add a line that survives a crash once this returns."""
        if not self._sound:
            raise StoreError(f"{self.path} could not be written before; resume the job")
        self._sound = False
        self._disk.write(self.path, self._file, _make_line(value))
        self._disk.sync(self.path, self._file)
        self._sound = True

    def cut(self, end: int) -> None:
        """Remove what comes after byte `end`; a crash may bring it back, torn as it was."""
        self._disk.truncate(self.path, self._file, end)

    def close(self) -> None:
        self._file.close()


def create_journal(folder: Path, header: StoreHeader, disk: Disk) -> None:
    """Start a journal, whole or not at all."""
    disk.replace(folder / JOURNAL_NAME, _make_line({**_FORMAT, **header.to_json()}))


def read_journal(folder: Path) -> Entries:
    """What the journal of a folder says; `StoreError` if it is damaged, and not merely torn."""
    path = folder / JOURNAL_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise make_error("read", path, error) from error
    lines, end = _parse_lines(path, data)
    if not lines or {name: lines[0].get(name) for name in _FORMAT} != _FORMAT:
        raise StoreError(f"{path} is no journal that this version of phiscope can read")
    return _collect(lines, end)


def _collect(lines: list[dict[str, Any]], end: int) -> Entries:
    header = read_header(lines[0])
    records: dict[int, ShardRecord] = {}
    num_shards = None
    for line in lines[1:]:
        if "shard" in line:
            record = read_record(line["shard"])
            records[record.number] = record
        num_shards = line.get("num_shards", num_shards)
    return Entries(header=header, records=records, num_shards=num_shards, end=end)


def _parse_lines(path: Path, data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The lines before the first torn one, and the byte they end at."""
    raw = data.splitlines(keepends=True)
    values = [_parse(line) for line in raw]
    torn = values.index(None) if None in values else len(values)
    if any(value is not None for value in values[torn:]):
        raise StoreError(f"{path} is damaged at line {torn + 1}")
    return [value for value in values if value is not None], sum(map(len, raw[:torn]))


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _make_line(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"
