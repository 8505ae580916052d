"""Forecast: what a job will come to, before it runs.

The whole input is read, tokenized and planned as the job will do it, so rows, tokens, batches and
bytes on the disk are what they will be, unless states turn out to be no numbers. Time is that of
this pass and of the forwards, by the operations per second of a batch of median size; what the disk
takes to write is not in it. Memory is what the process holds now, with its model, and what `costs`
estimates for the largest batch and shard; at least what the process has held at most until now.
"""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from phiscope.errors import InputError
from phiscope.extraction.costs import Costs
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.inputs import Row
from phiscope.extraction.job import Job
from phiscope.extraction.pieces import Piece, Text
from phiscope.extraction.shard import Shard


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a job will come to, or the part of it that it names."""

    num_input_rows: int
    num_bad_rows: int
    num_tokens: int
    num_batches: int
    num_shards: int
    seconds: float
    peak_memory_bytes: int
    """Of the process; of the GPU where there is one."""
    disk_bytes: int
    tokens_per_second: float

    def __str__(self) -> str:
        return (
            f"{self.num_input_rows:,} rows ({self.num_bad_rows:,} bad), {self.num_tokens:,} tokens,"
            f" {self.num_batches:,} batches, {self.num_shards:,} shards; about"
            f" {self.seconds:,.0f} s at {self.tokens_per_second:,.0f} tokens/s,"
            f" {self.peak_memory_bytes / 1e9:,.1f} GB of memory,"
            f" {self.disk_bytes / 1e6:,.1f} MB on the disk"
        )


def forecast(job: Job, seconds: float = 5.0) -> Forecast:
    """Read a job's whole input and try its forwards for about so many seconds; write nothing.

    It is of the whole job, or of its part, whatever of it is done already.

    Raises `InputError` for an input that can be read only once.
    """
    if not job.source.repeatable:
        raise InputError(f"{job.source.name} can be read only once, by the job; give a file")
    device, began = job.extractor.device, time.perf_counter()
    held = _measure_memory(device)
    outline = _Outline(job.extractor)
    for number, rows in job.shards():
        if job.is_ours(number):
            outline.add(number, rows)
    reading = time.perf_counter() - began
    speed = _measure_speed(job, outline, seconds)
    total = reading + (outline.operations / speed if speed else 0.0)
    return Forecast(
        num_input_rows=outline.num_input_rows,
        num_bad_rows=outline.num_bad_rows,
        num_tokens=outline.num_tokens,
        num_batches=len(outline.batches),
        num_shards=outline.num_shards,
        seconds=total,
        peak_memory_bytes=max(held + outline.memory, _measure_peak(device)),
        disk_bytes=outline.disk_bytes,
        tokens_per_second=outline.num_tokens / total,
    )


class _Outline:
    """What the shards come to."""

    def __init__(self, extractor: Extractor) -> None:
        self.num_input_rows = self.num_bad_rows = self.num_tokens = self.num_shards = 0
        self.operations = 0
        self.batches: list[tuple[int, int, int]] = []
        """Tokens, shard, and place in the shard's plan."""
        self._extractor = extractor
        self._costs = Costs(extractor)
        self._batch_memory = self._shard_memory = 0
        self.disk_bytes = self._costs.count_folder_bytes()

    @property
    def memory(self) -> int:
        """Bytes that the largest batch and, on a CPU, the largest shard add."""
        on_gpu = self._extractor.device.type == "cuda"
        return self._batch_memory + (0 if on_gpu else self._shard_memory)

    def add(self, number: int, rows: Sequence[Row]) -> None:
        shard = self._extractor.read(rows, number * self._extractor.shard_size)
        self.num_shards += 1
        self.num_input_rows += len(rows)
        self.num_bad_rows += sum("error" in entry for entry in shard.errors)
        self.num_tokens += shard.num_tokens
        self.disk_bytes += self._costs.count_shard_bytes(shard)
        self._shard_memory = max(self._shard_memory, self._costs.estimate_shard_memory(shard))
        places = count()
        for wave in self._extractor.waves(shard):
            num_prefix_tokens = _count_tokens(wave.prefixes)
            for pieces in self._extractor.batches(wave):
                self.batches.append((_count_tokens(pieces), number, next(places)))
                self.operations += self._costs.count_operations(pieces)
                memory = self._costs.estimate_memory(pieces, num_prefix_tokens)
                self._batch_memory = max(self._batch_memory, memory)


def _count_tokens(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces)


class _Nowhere:
    """A sink that keeps nothing."""

    def put(self, column: str, first_row: int, values: NDArray[Any]) -> None:
        pass


def _measure_speed(job: Job, outline: _Outline, seconds: float) -> float:
    """Operations per second of the batch of median size; 0.0 if there is none.

    A growing part of it is run as long as there is time, and then the whole of it again and again.
    """
    if not outline.batches:
        return 0.0
    texts = _read_batch(job, *sorted(outline.batches)[len(outline.batches) // 2][1:])
    costs, extractor = Costs(job.extractor), job.extractor
    began, speeds, size = time.perf_counter(), [0.0], 0
    while size == 0 or time.perf_counter() - began < seconds / 2:
        speeds = speeds if size == len(texts) else []
        size = min(len(texts), max(1, 4 * size))
        shard = Shard(begin=0, end=size, texts=tuple(texts[-size:]), schema=extractor.schema)
        operations = sum(map(costs.count_operations, extractor.plan(shard)))
        before = time.perf_counter()
        extractor.run(shard, _Nowhere())
        speeds.append(operations / (time.perf_counter() - before))
    return median(speeds)


def _read_batch(job: Job, number: int, place: int) -> list[Text]:
    """A batch's sequences, as texts of their own that go on from nothing."""
    extractor, size = job.extractor, job.extractor.shard_size
    rows = list(job.source.rows(number * size, (number + 1) * size))
    pieces = extractor.plan(extractor.read(rows, number * size))[place]
    return [_as_text(number, piece) for number, piece in enumerate(pieces)]


def _as_text(number: int, piece: Piece) -> Text:
    row = Row(index=number, id=str(number), ids=piece.ids)
    chosen = piece.reads[0].rows if piece.reads else np.array([len(piece.ids) - 1])
    return Text(row, piece.ids, chosen, 0, len(piece.ids))


def _measure_memory(device: torch.device) -> int:
    """Bytes held now, by the process or on the GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statistics = Path("/proc/self/statm")
    if not statistics.exists():
        return _measure_peak(device)
    return int(statistics.read_text().split()[1]) * resource.getpagesize()


def _measure_peak(device: torch.device) -> int:
    """Bytes held at most until now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
