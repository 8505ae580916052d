"""Fixed steps: decodes of one token each, whose forward is recorded once and then replayed.

A step of a few tokens takes a GPU less time than it takes Python to ask for it. Here ids, places
and slots lie in buffers that stay where they are, and nothing else changes from step to step, so
that the whole forward is one recorded piece of work. There is a recording for each number of
completions (1, 2, 4, 8 ...), filled up by rows that write to a spare cache slot, for each power of
two of places that attention looks at, and for each set of points that are kept or steered.
"""

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from phiscope.cache import DecodeCache, KVCache
from phiscope.generation.chunks import ChunkOf, ChunkResult, count_logits, list_ids
from phiscope.generation.model_parts import ModelParts
from phiscope.generation.task import Inspect
from phiscope.graphs import Recorder, Work
from phiscope.model import PhiForCausalLM
from phiscope.outputs import Plan
from phiscope.packing import make_decodes

PATIENCE = 2
"""Times a step is run before it is recorded: what runs once or twice is not worth it."""
MOST_STEPS = 24
"""Recordings kept; the one that was not needed for longest goes first."""


class FixedPlan(Plan, Protocol):
    """A plan that serves one step after another from the same buffers."""

    def load(self, inspects: Sequence[Inspect | None], places: Sequence[int]) -> None:
        """Take what each sequence wants for its token at this place, before the forward."""

    def finish(self) -> None:
        """End the forward, as a part of what is recorded."""

    def fetch(self) -> None:
        """Begin to copy what was seen to the CPU; it is there once the device is done."""

    def rows(self, sequence: int, inspect: Inspect) -> Mapping[str, Tensor]:
        """Copies of one sequence's rows (1, ...) at its points, after the forward."""


class FixedPlanMaker(Protocol):
    """Makes fixed plans for batches whose wishes can be served so."""

    def describe(self, inspects: Sequence[Inspect | None]) -> Hashable | None:
        """What a plan for these sequences does; equal for equal plans, None if none can do it."""

    def make(self, description: Hashable, batch: int, model: PhiForCausalLM) -> FixedPlan:
        """The plan that was described."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How steps are recorded."""

    record: Recorder
    plans: FixedPlanMaker | None = None
    """None: steps with plans are not recorded."""
    least_places: int = 256
    """Attention looks at no fewer places of a slot."""


def count_spare_slots(num_slots: int) -> int:
    """Cache slots needed besides, for rows that fill a batch up."""
    return int(any(_fill_up(count) > count for count in range(1, num_slots + 1)))


class FixedSteps:
    """Runs a batch of decodes as a recorded step, or says that it is none."""

    def __init__(self, model: PhiForCausalLM, replay: Replay, *, num_tokens: int) -> None:
        self.is_on = True
        """Whether steps are run here; may be set at any time."""
        self.num_runs = 0
        """Steps run here."""
        self._model = model
        self._replay = replay
        self._num_tokens = num_tokens
        self._steps: dict[Hashable, _Step] = {}
        self._parts: ModelParts | None = None

    @torch.inference_mode()
    def run(self, chunks: Sequence[ChunkOf], kv_cache: KVCache) -> list[ChunkResult] | None:
        """The results of the chunks; None if they, or the model as it is, cannot be run so."""
        if not self.is_on or not all(map(_is_decode, chunks)):
            return None
        inspects = [chunk.job.task.inspect for chunk in chunks]
        description = self._describe(inspects)
        if description is None or not self._knows_model():
            return None
        try:
            return self._run(chunks, kv_cache, inspects, description)
        except Exception as error:
            self._give_up(error)
            return None

    def _run(
        self,
        chunks: Sequence[ChunkOf],
        kv_cache: KVCache,
        inspects: Sequence[Inspect | None],
        description: Hashable,
    ) -> list[ChunkResult] | None:
        step = self._select(chunks, kv_cache, description)
        step.load(chunks, inspects)
        self._do(step)
        if self._parts is None:  # after the first run, which makes what is made only once
            self._parts = ModelParts(self._model)
        elif not self._parts.is_current():  # looked at while a GPU is busy
            step.wait()
            self._forget()
            return None
        self.num_runs += 1
        return step.read(chunks)

    def _describe(self, inspects: Sequence[Inspect | None]) -> Hashable | None:
        if all(inspect is None for inspect in inspects):
            return ()
        return None if self._replay.plans is None else self._replay.plans.describe(inspects)

    def _knows_model(self) -> bool:
        return self._parts is not None or ModelParts(self._model).is_known

    def _select(
        self, chunks: Sequence[ChunkOf], kv_cache: KVCache, description: Hashable
    ) -> "_Step":
        """The step that fits, made if there is none; the last one used comes last."""
        batch = _fill_up(len(chunks))
        wanted = max(self._replay.least_places, 1 + max(chunk.start for chunk in chunks))
        num_places = min(_fill_up(wanted), kv_cache.num_places)
        key = (batch, num_places, description)
        step = self._steps.pop(key, None)
        if step is None:
            plan = self._make_plan(description, batch)
            step = _Step(self._model, kv_cache, plan, batch, num_places, self._num_tokens)
        self._steps[key] = step
        while len(self._steps) > MOST_STEPS:
            del self._steps[next(iter(self._steps))]
        return step

    def _make_plan(self, description: Hashable, batch: int) -> FixedPlan | None:
        if description == () or self._replay.plans is None:
            return None
        return self._replay.plans.make(description, batch, self._model)

    def _do(self, step: "_Step") -> None:
        if step.again is None and step.num_runs >= PATIENCE:
            step.again = self._replay.record(step.work)
        step.num_runs += 1
        (step.again or step.work)()

    def _forget(self) -> None:
        self._steps.clear()
        self._parts = None

    def _give_up(self, error: Exception) -> None:
        self._forget()
        self.is_on = False
        warnings.warn(
            f"decoding goes on without recorded steps, which is slower: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


class _Step:
    """Buffers, and the work that reads and fills them."""

    def __init__(
        self,
        model: PhiForCausalLM,
        kv_cache: KVCache,
        plan: FixedPlan | None,
        batch: int,
        num_places: int,
        num_tokens: int,
    ) -> None:
        self.again: Work | None = None
        """The recorded work."""
        self.num_runs = 0
        self._model = model
        self._plan = plan
        self._num_tokens = num_tokens
        self._spare = kv_cache.num_slots - 1
        self._inputs = torch.zeros(3, batch, dtype=torch.int64, device=kv_cache.data.device)
        self._ids, positions, slots = self._inputs
        self._packed = make_decodes(slots, positions, num_places)
        self._cache = DecodeCache(kv_cache, self._packed)
        self._logits: Tensor
        self._told: Tensor

    def load(self, chunks: Sequence[ChunkOf], inspects: Sequence[Inspect | None]) -> None:
        """Fill the buffers; rows that are left go to the spare slot."""
        num_left = self._inputs.shape[1] - len(chunks)
        rows = [(*list_ids(chunk), chunk.start, chunk.job.slot) for chunk in chunks]
        rows += [(0, 0, self._spare)] * num_left
        values = torch.tensor(list(zip(*rows, strict=True)), pin_memory=self._inputs.is_cuda)
        self._inputs.copy_(values, non_blocking=True)
        if self._plan is not None:
            places = [chunk.start for chunk in chunks]
            self._plan.load([*inspects, *[None] * num_left], [*places, *[0] * num_left])

    def work(self) -> None:
        """One forward from buffers to buffers."""
        logits = self._model(self._ids, self._packed, cache=self._cache, plan=self._plan)
        best, ids = logits[:, : self._num_tokens].max(dim=-1)
        is_finite = logits.sum(dim=-1).isfinite()  # a NaN or infinity spoils the sum
        self._told = torch.stack((ids, best.isfinite().to(ids), is_finite.to(ids)))
        self._logits = logits
        if self._plan is not None:
            self._plan.finish()

    def wait(self) -> None:
        """Until the work is done: what is busy must not be freed."""
        self._told.tolist()

    def read(self, chunks: Sequence[ChunkOf]) -> list[ChunkResult]:
        """What the work gave, valid until it is done again. Waits for a GPU, once."""
        if self._plan is not None:
            self._plan.fetch()
        told = zip(*self._told.tolist(), strict=True)
        return [
            self._result(row, chunk, *one)
            for row, (chunk, one) in enumerate(zip(chunks, told, strict=False))
        ]

    def _result(
        self, row: int, chunk: ChunkOf, token_id: int, is_possible: int, is_finite: int
    ) -> ChunkResult:
        count = count_logits(chunk)
        return ChunkResult(
            chunk,
            self._logits[row : row + count],
            not count or bool(is_finite),
            self._reader(row, chunk),
            greedy_id=token_id if is_possible else None,
        )

    def _reader(self, row: int, chunk: ChunkOf) -> Callable[[], Mapping[str, Tensor]]:
        plan, inspect = self._plan, chunk.job.task.inspect
        if plan is None or inspect is None or not chunk.job.task.keeps_rows:
            return dict
        return cache(lambda: plan.rows(row, inspect))


def _is_decode(chunk: ChunkOf) -> bool:
    return chunk.length == 1 and not chunk.num_draft and not chunk.job.is_prefilling


def _fill_up(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
