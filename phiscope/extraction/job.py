"""The job: a source of rows becomes a store, shard by shard, whatever happens on the way."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phiscope.errors import StoreError
from phiscope.extraction.extractor import Extractor, digest_rows
from phiscope.extraction.identity import identify
from phiscope.extraction.inputs import Row, Source
from phiscope.extraction.interrupts import interruptible
from phiscope.extraction.progress import Progress, Report
from phiscope.store import Disk, StoreWriter


@dataclass(frozen=True, kw_only=True)
class Job:
    """One extraction: what is read, from where, and into which folder."""

    extractor: Extractor
    source: Source
    out: Path
    part: tuple[int, int] | None = None
    """(i, n): only the shards i, i + n, i + 2n ...; the parts are merged later."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """For the manifest, and not compared on resume: names as the user gave them."""

    def __post_init__(self) -> None:
        if self.part is not None and not 0 <= self.part[0] < self.part[1]:
            i, n = self.part
            raise ValueError(f"there is no part {i}/{n}: {n} parts are 0/{n} to {n - 1}/{n}")

    def open(self, *, resume: bool, disk: Disk | None = None) -> StoreWriter:
        """Open the folder for this job; `StoreError` if it holds anything else."""
        return StoreWriter.open(
            self.out,
            self.extractor.schema,
            job=identify(self.extractor, self.source.spec),
            notes=self.notes,
            shard_size=self.extractor.shard_size,
            resume=resume,
            disk=disk,
        )

    def shards(self) -> Iterator[tuple[int, list[Row]]]:
        """The number and the rows of every shard of the input, in order."""
        size, number = self.extractor.shard_size, 0
        while rows := list(self.source.rows(number * size, (number + 1) * size)):
            yield number, rows
            number += 1

    def is_ours(self, number: int) -> bool:
        """Whether a shard belongs to this part of the job."""
        return self.part is None or number % self.part[1] == self.part[0]


def run_job(
    job: Job, *, resume: bool = True, disk: Disk | None = None, progress: Progress | None = None
) -> Report:
    """Run or resume a job on this machine; its store is finished unless it is a part.

    Ctrl-C ends it after the shard at work; a second one at once. Raises `StoreError` for a folder
    of another job or an input that has changed.
    """
    progress = progress or Progress(job.extractor)
    with job.open(resume=resume, disk=disk) as writer, interruptible(progress.say) as is_asked:
        num_shards = 0
        for number, rows in job.shards():
            num_shards = number + 1
            if is_done(writer, number, rows):
                progress.skip(rows)
            elif job.is_ours(number):
                run_shard(job.extractor, writer, number, rows, progress)
            if is_asked():
                writer.interrupt()
                return progress.report(writer)
        complete(job, writer, num_shards)
        return progress.report(writer)


def is_done(writer: StoreWriter, number: int, rows: Sequence[Row]) -> bool:
    """Whether a shard is in the store; `StoreError` if it was made of other rows."""
    record = writer.done.get(number)
    if record is None:
        if writer.finished:
            raise StoreError(f"{writer.folder} is finished, and the input has more rows than it")
        return False
    if record.input_sha256 != digest_rows(rows):
        raise StoreError(
            f"rows {record.begin} to {record.end - 1} of the input are not those that"
            f" {writer.folder} was made of; give the old input, or another folder"
        )
    return True


def run_shard(
    extractor: Extractor,
    writer: StoreWriter,
    number: int,
    rows: Sequence[Row],
    progress: Progress,
) -> None:
    """Compute one shard and put it into the store."""
    shard = extractor.read(rows, number * extractor.shard_size)
    with writer.scratch(shard.num_rows) as scratch:
        collector = extractor.run(shard, scratch, progress.advance)
        origin, kept = extractor.describe(shard, collector)
        record = writer.write_shard(
            number, extractor.keys(shard), scratch, origin=origin, kept=kept
        )
    progress.finish_shard(len(rows), record)


def complete(job: Job, writer: StoreWriter, num_shards: int) -> None:
    """Finish the store, or say that this part of it is done."""
    if any(number >= num_shards for number in writer.done) and num_shards:
        raise StoreError(f"the input has fewer rows than {writer.folder} was made of")
    if job.part is not None and not writer.finished:
        writer.finish_part(num_shards)
        writer.interrupt()
    else:
        writer.finish()
