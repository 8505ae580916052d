"""The writing side of a store: one job's folder, which any crash leaves resumable.

The order of things is what makes it so. A shard's file is whole and on the disk before it has its
name, and has its name before the journal knows it; the manifest is the last file to appear and
makes the store a finished one. Resuming trusts the journal alone and removes the rest.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phiscope.errors import StoreError
from phiscope.store.disk import Disk
from phiscope.store.folder import (
    JOURNAL_NAME,
    LOCK_NAME,
    MANIFEST_NAME,
    State,
    data_name,
    has_traces,
    list_leftovers,
    list_names,
    locate_shards,
    shard_name,
    survey,
)
from phiscope.store.header import StoreHeader, read_header
from phiscope.store.journal import Journal, create_journal, read_journal
from phiscope.store.lock import FolderLock
from phiscope.store.manifest import (
    make_manifest,
    read_manifest,
    read_records,
    write_dataset_files,
    write_errors,
)
from phiscope.store.records import ShardOrigin, ShardRecord
from phiscope.store.schema import Schema
from phiscope.store.scratch import Array, Scratch
from phiscope.store.shard import ShardKeys, write_shard


class StoreWriter:
    """One job's folder, opened new or to be resumed, locked against a second job."""

    def __init__(self, folder: Path, header: StoreHeader, disk: Disk) -> None:
        self.folder = folder
        self.header = header
        self.done: dict[int, ShardRecord] = {}
        self.finished = False
        self.num_shards: int | None = None
        """Shards of the whole job, where a part of it has said so."""
        self._disk = disk
        self._lock: FolderLock | None = None
        self._journal: Journal | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        schema: Schema,
        *,
        job: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
        shard_size: int,
        resume: bool,
        disk: Disk | None = None,
    ) -> "StoreWriter":
        """Open a folder for a job; `StoreError` if it is taken, busy, damaged or of another job.

        A new or empty folder becomes a store whether `resume` is set or not; one that holds a
        store of the same job goes on only where it is.
        """
        header = StoreHeader(schema=schema, shard_size=shard_size, job=job, notes=notes or {})
        writer = cls(folder, header, disk or Disk())
        try:
            writer._open(resume)
        except BaseException:
            writer.close()
            raise
        return writer

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scratch(self, num_rows: int) -> Scratch:
        """Room for a shard's rows while they are computed."""
        return Scratch(self.folder, self.header.schema.columns, num_rows)

    def write_shard(
        self,
        number: int,
        keys: ShardKeys,
        scratch: Scratch,
        *,
        origin: ShardOrigin,
        kept: Array | None = None,
    ) -> ShardRecord:
        """Write a shard and record it; `kept` (num_rows,) says which rows, None: all."""
        self._check_open()
        record = write_shard(
            self.folder,
            self.header.schema,
            number,
            keys,
            scratch,
            origin=origin,
            kept=kept,
            disk=self._disk,
        )
        self.record(record)
        return record

    def record(self, record: ShardRecord) -> None:
        """Put a shard whose file is in the folder into the journal."""
        if record.number in self.done:
            raise ValueError(f"shard {record.number} is in the journal already")
        size = self.header.shard_size
        if record.begin != record.number * size or record.end > record.begin + size:
            raise ValueError(f"shard {record.number} cannot hold {record.begin} to {record.end}")
        _check_file(self.folder / shard_name(record.number), record)
        self._check_open().append({"shard": record.to_json()})
        self.done[record.number] = record

    def finish_part(self, num_shards: int) -> None:
        """Say how many shards the whole job has, of which this folder holds a part, for a merge."""
        if self.num_shards != num_shards:
            self._check_open().append({"num_shards": num_shards})
        self.num_shards = num_shards

    def finish(self, *, extra: Mapping[str, Any] | None = None) -> None:
        """Make the folder a finished store; every step can be repeated after a crash."""
        if self.finished:
            return
        if not self.done:
            self._write_empty_shard()
        records = self._list_records()
        _check_complete(self.folder, records, self.header.shard_size)
        if self.num_shards not in (None, len(records)):
            raise StoreError(f"{self.folder} has {len(records)} of {self.num_shards} shards; merge")
        self._name_files(records)
        write_errors(self.folder, records, self._disk)
        write_dataset_files(self.folder, records, self._disk)
        manifest = make_manifest(self.header, records, extra or {})
        self._disk.replace_json(self.folder / MANIFEST_NAME, manifest)
        self._remove_traces()

    def interrupt(self) -> None:
        """Leave an unfinished store, with the errors so far in errors.jsonl."""
        if not self.finished:
            write_errors(self.folder, self._list_records(), self._disk)
        self.close()

    def close(self) -> None:
        """Let go of the folder; what is in the journal stays."""
        if self._journal is not None:
            self._journal.close()
        if self._lock is not None:
            self._lock.release()
        self._journal = self._lock = None

    def _open(self, resume: bool) -> None:
        if self._survey(resume) == "finished" and not has_traces(self.folder):
            self._open_finished()
            return
        self._disk.make_folder(self.folder)
        self._lock = FolderLock(self.folder)
        state = self._survey(resume)  # again: another job may have ended just before
        if state == "finished":
            self._open_finished()
            self._remove_traces()
            return
        if state == "new":
            create_journal(self.folder, self.header, self._disk)
        self._open_journal()

    def _survey(self, resume: bool) -> State:
        """The folder's state, in which there may be a store only to resume it."""
        if not resume and set(list_names(self.folder)) - {LOCK_NAME}:
            raise StoreError(f"{self.folder} is not empty; resume its job, or give another folder")
        return survey(self.folder)

    def _open_finished(self) -> None:
        manifest = read_manifest(self.folder)
        self.header.check_same(read_header(manifest), self.folder)
        self.done = {record.number: record for record in read_records(manifest)}
        self.finished = True

    def _open_journal(self) -> None:
        entries = read_journal(self.folder)
        self.header.check_same(entries.header, self.folder)
        self.header, self.num_shards = entries.header, entries.num_shards
        self.done = entries.records
        self._check_files()
        self._journal = Journal(self.folder / JOURNAL_NAME, self._disk)
        self._journal.cut(entries.end)
        self._remove_leftovers()

    def _check_files(self) -> None:
        files = locate_shards(self.folder)
        for number, record in self.done.items():
            _check_file(files.get(number, self.folder / shard_name(number)), record)

    def _remove_leftovers(self) -> None:
        """Remove what a killed job left and the journal does not know."""
        files = locate_shards(self.folder)
        kept = [path for number, path in files.items() if number in self.done]
        for path in list_leftovers(self.folder, kept):
            self._disk.remove(path)

    def _name_files(self, records: list[ShardRecord]) -> None:
        """Give the shards their final names."""
        files = locate_shards(self.folder)
        for number, record in enumerate(records):
            name = self.folder / data_name(number, len(records))
            if files[record.number] != name:
                self._disk.rename(files[number], name)
        self._disk.sync_folder(self.folder)

    def _list_records(self) -> list[ShardRecord]:
        return [self.done[number] for number in sorted(self.done)]

    def _check_open(self) -> Journal:
        if self._journal is None:
            raise ValueError(f"{self.folder} is finished or closed and takes no more shards")
        return self._journal

    def _write_empty_shard(self) -> None:
        nothing = hashlib.sha256().hexdigest()
        origin = ShardOrigin(begin=0, end=0, num_tokens=0, input_sha256=nothing)
        with self.scratch(0) as scratch:
            self.write_shard(0, ShardKeys(ids=[], first=[], second=[]), scratch, origin=origin)

    def _remove_traces(self) -> None:
        """Remove what only an unfinished store has, once the manifest is on the disk."""
        self.finished = True
        self._disk.remove(self.folder / JOURNAL_NAME)
        self._remove_leftovers()
        self._disk.remove(self.folder / LOCK_NAME)
        self._disk.sync_folder(self.folder)
        self.close()


def _check_file(path: Path, record: ShardRecord) -> None:
    """Raise `StoreError` unless the shard's file has the size on record."""
    if not path.exists():
        raise StoreError(f"{path} is missing, though the journal has it; start the store again")
    size = path.stat().st_size
    if size != record.bytes:
        raise StoreError(
            f"{path} has {size:,} bytes and the journal says {record.bytes:,}; "
            "it is damaged, so start the store again"
        )


def _check_complete(folder: Path, records: list[ShardRecord], shard_size: int) -> None:
    """Raise `StoreError` unless the shards follow one another without a gap."""
    end = 0
    for number, record in enumerate(records):
        if record.number != number or record.begin != end:
            raise StoreError(f"{folder} has no shard {number}, of input row {end} on; resume it")
        end = record.end
    short = [record for record in records[:-1] if record.end - record.begin < shard_size]
    if short:
        raise StoreError(f"{folder}: shard {short[0].number} ends early, at row {short[0].end}")
