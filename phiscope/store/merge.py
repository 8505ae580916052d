"""Merging: folders that several machines filled for one job become the store one would write.

A part is an unfinished store whose journal has some of the shards, and says how many there are in
all (`StoreWriter.finish_part`). Parts are read and left as they are.
"""

import hashlib
import io
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from phiscope.errors import StoreError
from phiscope.store.disk import Disk, make_error
from phiscope.store.folder import locate_shards, shard_name, survey
from phiscope.store.header import StoreHeader, show
from phiscope.store.journal import Entries, read_journal
from phiscope.store.lock import check_unlocked
from phiscope.store.records import ShardRecord
from phiscope.store.writer import StoreWriter

_CHUNK_BYTES = 4 * 2**20
_NUM_NAMED = 10


class _Source(NamedTuple):
    """A shard in a part."""

    path: Path
    record: ShardRecord


def merge_stores(
    parts: Sequence[Path],
    out: Path,
    *,
    extra: Mapping[str, Any] | None = None,
    disk: Disk | None = None,
) -> None:
    """Write the parts' store to `out`, byte for byte what one job would have written.

    After a crash the same call goes on. Raises `StoreError` if parts are of different jobs, lack
    shards, or differ in one that several have; `extra` is that of `StoreWriter.finish`.
    """
    disk = disk or Disk()
    entries = {folder: _read_part(folder) for folder in parts}
    if not entries or out.resolve() in {folder.resolve() for folder in parts}:
        raise ValueError(f"a merge needs parts and another folder, got {list(parts)} and {out}")
    header = _find_header(entries)
    sources = _choose_sources(entries)
    with StoreWriter.open(
        out,
        header.schema,
        job=header.job,
        notes=header.notes,
        shard_size=header.shard_size,
        resume=True,
        disk=disk,
    ) as writer:
        _check_target(writer, sources)
        for source in sources:
            if source.record.number not in writer.done:
                _copy_shard(source, out, disk)
                writer.record(source.record)
        writer.finish(extra=extra)


def _read_part(folder: Path) -> Entries:
    if survey(folder) != "unfinished":
        raise StoreError(f"{folder} is no part of a store; give folders that parts of a job wrote")
    check_unlocked(folder)
    return read_journal(folder)


def _find_header(entries: Mapping[Path, Entries]) -> StoreHeader:
    """The header that all parts have; notes are those of the first."""
    (first, one), *others = entries.items()
    for folder, other in others:
        difference = one.header.find_difference(other.header)
        if difference:
            raise StoreError(
                f"{first} and {folder} are of different jobs: {difference.name} is "
                f"{show(difference.wanted)} there and {show(difference.stored)} here"
            )
    return one.header


def _choose_sources(entries: Mapping[Path, Entries]) -> list[_Source]:
    """One source of each shard, in order."""
    num_shards = _find_num_shards(entries)
    chosen: dict[int, _Source] = {}
    for folder, part in entries.items():
        files = locate_shards(folder)
        for number, record in part.records.items():
            path = files.get(number, folder / shard_name(number))
            source = chosen.setdefault(number, _Source(path, record))
            if source.record != record:
                raise StoreError(f"{path} and {source.path} differ, though of one shard")
    missing = [str(number) for number in range(num_shards) if number not in chosen]
    if missing:
        more = ", ..." if len(missing) > _NUM_NAMED else ""
        raise StoreError(
            f"no part has shard {', '.join(missing[:_NUM_NAMED])}{more} of {num_shards}; "
            "run or resume the parts that should"
        )
    return [chosen[number] for number in sorted(chosen)]


def _find_num_shards(entries: Mapping[Path, Entries]) -> int:
    """The number of shards that finished parts agree on."""
    said = {part.num_shards for part in entries.values() if part.num_shards is not None}
    largest = max((number for part in entries.values() for number in part.records), default=-1)
    if not said:
        raise StoreError("no part knows the number of shards, so none is done; resume them")
    if len(said) > 1 or max(said) <= largest:
        counts = ", ".join(map(str, sorted({*said, largest + 1})))
        raise StoreError(f"parts disagree on the number of shards: {counts}; give those of one job")
    return said.pop()


def _check_target(writer: StoreWriter, sources: Sequence[_Source]) -> None:
    """Raise `StoreError` unless the folder has some of the shards, or all if it is finished."""
    hashes = {source.record.number: source.record.sha256 for source in sources}
    others = {n for n, record in writer.done.items() if hashes.get(n) != record.sha256}
    if others or (writer.finished and len(writer.done) < len(hashes)):
        raise StoreError(f"{writer.folder} has other shards than the parts; give another folder")


def _copy_shard(source: _Source, folder: Path, disk: Disk) -> None:
    """Give a shard's file its place in the folder, if its bytes are those on record."""
    path, name = source.path, shard_name(source.record.number)
    temporary = folder / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        if _bring(path, temporary, disk) != source.record.sha256:
            raise StoreError(f"{path} is damaged: its sha256 differs; write that part again")
        disk.rename(temporary, folder / name)
        disk.sync_folder(folder)
    except Exception:
        with suppress(StoreError):
            disk.remove(temporary)
        raise


def _bring(source: Path, target: Path, disk: Disk) -> str:
    """Link a file, or copy it where that cannot be; the sha256 of what reached the disk."""
    try:
        disk.link(source, target)
    except StoreError:  # another file system, or one without links
        return _copy(source, target, disk)
    with _open(target) as file:
        disk.sync(target, file)  # whoever brought the part here may not have
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: Path, target: Path, disk: Disk) -> str:
    digest = hashlib.sha256()
    with _open(source) as file, disk.create(target) as copy:
        while chunk := file.read(_CHUNK_BYTES):
            disk.write(target, copy, chunk)
            digest.update(chunk)
        disk.sync(target, copy)
    return digest.hexdigest()


def _open(path: Path) -> io.FileIO:
    try:
        return io.FileIO(path)
    except OSError as error:
        raise make_error("read", path, error) from error
