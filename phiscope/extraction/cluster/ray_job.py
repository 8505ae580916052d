"""The job on a Ray cluster: the same shards on many machines, and the same folder byte for byte.

The driver alone reads the input and keeps the journal; it loads no model. Actors make the shards
and write their files into the folder, which all machines share.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from phiscope.extraction.cluster.actor import ShardActor
from phiscope.extraction.cluster.crew import Crew, Task
from phiscope.extraction.cluster.session import (
    Allotment,
    Cluster,
    allot,
    list_resources,
    open_session,
)
from phiscope.extraction.inputs import Row, Source
from phiscope.extraction.interrupts import interruptible
from phiscope.extraction.job import check_all_read, is_done
from phiscope.extraction.progress import Progress, Report
from phiscope.extraction.recipe import Recipe
from phiscope.runtime import MODES
from phiscope.store import StoreWriter
from phiscope.store.header import StoreHeader


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """One extraction: how it is made, from where, and into which folder."""

    recipe: Recipe
    source: Source
    out: Path
    """On a file system that all machines share, under the same path."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """For the manifest, and not compared on resume: names as the user gave them."""

    def open(self, header: StoreHeader, *, resume: bool) -> StoreWriter:
        """Open the folder for this job; `StoreError` if it holds anything else."""
        return StoreWriter.open(
            self.out.absolute(),
            header.schema,
            job=header.job,
            notes=self.notes,
            shard_size=header.shard_size,
            resume=resume,
        )

    def shards(self, shard_size: int) -> Iterator[tuple[int, list[Row]]]:
        """The number and the rows of every shard of the input, in order."""
        number = 0
        while rows := list(self.source.rows(number * shard_size, (number + 1) * shard_size)):
            yield number, rows
            number += 1


def run_on_ray(
    job: ClusterJob,
    cluster: Cluster | None = None,
    *,
    resume: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Run or resume a job on a Ray cluster, or on a Ray of its own on this machine.

    A dead actor's shards go to another one. Ctrl-C ends the job after the shards at work; a second
    one at once. Raises `MissingExtraError` without Ray, `UnsupportedError` for what the cluster
    cannot give, `StoreError` for a folder of another job, one that some machine does not see, an
    input that has changed, or a shard that kills its actors, and whatever a shard raised.
    """
    progress = progress or Progress(None)
    num_threads = job.recipe.model.num_threads or torch.get_num_threads()
    recipe = job.recipe.settle(num_threads)
    cluster = _settle(cluster or Cluster(), recipe.model.mode)
    with open_session(cluster, num_threads) as ray:
        allotment = allot(list_resources(ray), cluster, num_threads)
        if (cluster.num_actors or 0) > allotment.num_actors:
            progress.say(f"there is room for {allotment.num_actors} of the actors asked for")
        start = _make_starter(ray, allotment, recipe, job.source)
        size, timeout = allotment.num_actors, cluster.start_timeout
        with Crew(ray, start, size, progress.say, timeout=timeout) as crew:
            header = crew.get_ready()
            with closing(progress), job.open(header, resume=resume) as writer:
                was_finished = writer.finished
                _run(job, crew, writer, progress)
                return replace(progress.report(writer), was_finished=was_finished)


def _settle(cluster: Cluster, mode: str) -> Cluster:
    """No GPUs by default where the mode has no use for them."""
    is_for_cpus = mode in MODES and MODES[mode].device == "cpu"
    if cluster.gpus_per_actor is None and is_for_cpus:
        return replace(cluster, gpus_per_actor=0)
    return cluster


def _make_starter(
    ray: Any, allotment: Allotment, recipe: Recipe, source: Source
) -> Callable[[], Any]:
    """What starts an actor somewhere."""
    actor = ray.remote(ShardActor).options(
        num_cpus=allotment.cpus, num_gpus=allotment.gpus, scheduling_strategy="SPREAD"
    )
    return lambda: actor.remote(recipe, dict(source.spec), has_gpus=allotment.gpus > 0)


def _run(job: ClusterJob, crew: Crew, writer: StoreWriter, progress: Progress) -> None:
    """Have all shards made, and finish the store unless that is interrupted."""
    with interruptible(progress.say) as is_asked, _marked(writer) as marker:
        num_shards = 0
        for number, rows in job.shards(writer.header.shard_size):
            num_shards = number + 1
            if is_done(writer, number, rows):
                progress.skip(rows)
                continue
            while not crew.has_room and not is_asked():
                _record(crew, writer, progress)
            if is_asked():
                break
            crew.submit(Task(number, rows, marker))
        while crew.is_busy:
            _record(crew, writer, progress)
    if is_asked():
        writer.interrupt()
    else:
        check_all_read(writer, num_shards)
        writer.finish()


def _record(crew: Crew, writer: StoreWriter, progress: Progress) -> None:
    for task, record in crew.collect():
        writer.record(record)
        progress.advance(len(task.rows), record.num_tokens)
        progress.finish_shard(len(task.rows), record)


@contextmanager
def _marked(writer: StoreWriter) -> Iterator[Path]:
    """A file in the folder for as long as this driver gives out its shards.

    Its name is that of a temporary file, so whoever resumes a killed job removes it.
    """
    marker = writer.folder / f".driver-{secrets.token_hex(8)}.tmp"
    if writer.finished:
        yield marker
        return
    marker.touch()
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)  # before the folder is listed, which a client may cache
