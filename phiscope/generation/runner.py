"""Runner: one forward of the model over chunks of many jobs, and the cache they live in."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from phiscope.cache import KVCache
from phiscope.generation.chunks import ChunkOf, ChunkResult, count_logits, list_ids
from phiscope.generation.fixed_step import FixedSteps, count_spare_slots
from phiscope.generation.task import Inspect
from phiscope.model import PhiForCausalLM
from phiscope.outputs import Plan
from phiscope.packing import Packed, pack_lengths


class StepPlan(Plan, Protocol):
    """A plan that afterwards gives the rows of each sequence of its forward."""

    def rows(self, sequence: int) -> Mapping[str, Tensor]:
        """Copies of one sequence's rows (T, ...) at each point that it asked for."""


PlanMaker = Callable[[Packed, Sequence[Inspect | None], Sequence[int]], StepPlan]
"""Makes a plan of a packing, what each sequence inspects, and the rows whose logits are made.

Its `depth` is None: the whole model runs."""


class Runner:
    """Owns the cache, reserved when it is first needed. `fixed` runs the steps that it can."""

    def __init__(
        self,
        model: PhiForCausalLM,
        *,
        num_slots: int,
        num_places: int,
        make_plan: PlanMaker | None,
        fixed: FixedSteps | None = None,
    ) -> None:
        self.model = model
        self.fixed = fixed
        num_spare = 0 if fixed is None else count_spare_slots(num_slots)
        self._shape = (num_slots + num_spare, num_places)
        self._make_plan = make_plan
        self._cache: KVCache | None = None

    @property
    def device(self) -> torch.device:
        return self._embedding.weight.device

    @property
    def cache(self) -> KVCache:
        if self._cache is None:
            num_slots, num_places = self._shape
            self._cache = KVCache(
                self.model.config,
                num_slots=num_slots,
                num_places=num_places,
                dtype=self.model.model.hidden_dtype,
                device=self.device,
            )
        return self._cache

    def run(self, chunks: Sequence[ChunkOf]) -> list[ChunkResult]:
        """Run the chunks in one forward; the head only for the rows that somebody wants."""
        results = None if self.fixed is None else self.fixed.run(chunks, self.cache)
        return self._run_packed(chunks) if results is None else results

    def _run_packed(self, chunks: Sequence[ChunkOf]) -> list[ChunkResult]:
        packed = self._pack(chunks)
        counts = [count_logits(chunk) for chunk in chunks]
        ends = packed.offsets[1:]
        rows = [i for end, n in zip(ends, counts, strict=True) for i in range(end - n, end)]
        plan = self._plan(chunks, packed, rows)
        logits: Tensor = self.model(
            self._inputs(chunks), packed, cache=self.cache, plan=plan, rows=self._integers(rows)
        )
        flags = logits.sum(dim=-1).isfinite().tolist()  # a NaN or infinity spoils the sum
        borders = pairwise(accumulate(counts, initial=0))
        return [
            ChunkResult(chunk, logits[b:e], all(flags[b:e]), _reader(plan, i, chunk))
            for i, (chunk, (b, e)) in enumerate(zip(chunks, borders, strict=True))
        ]

    @property
    def _embedding(self) -> nn.Embedding:
        return self.model.model.embed_tokens

    def _pack(self, chunks: Sequence[ChunkOf]) -> Packed:
        return pack_lengths(
            [chunk.length for chunk in chunks],
            starts=[chunk.start for chunk in chunks],
            slots=[chunk.job.slot for chunk in chunks if chunk.job.slot is not None],
            device=self.device,
        )

    def _plan(
        self, chunks: Sequence[ChunkOf], packed: Packed, rows: Sequence[int]
    ) -> StepPlan | None:
        inspects = [chunk.job.task.inspect for chunk in chunks]
        if self._make_plan is None or all(inspect is None for inspect in inspects):
            return None
        return self._make_plan(packed, inspects, rows)

    def _inputs(self, chunks: Sequence[ChunkOf]) -> Tensor:
        """Token ids (N,), or embeddings (N, hidden) if any chunk is of those."""
        if any(chunk.job.task.prompt.embeddings is not None for chunk in chunks):
            return torch.cat([self._embed(chunk) for chunk in chunks])
        return self._integers([token_id for chunk in chunks for token_id in list_ids(chunk)])

    def _embed(self, chunk: ChunkOf) -> Tensor:
        embeddings = chunk.job.task.prompt.embeddings
        if embeddings is None or not chunk.job.is_prefilling:
            embedded: Tensor = self._embedding(self._integers(list_ids(chunk)))
            return embedded
        part = embeddings[chunk.start : chunk.start + chunk.length]
        return part.to(self.device, self.model.model.hidden_dtype)

    def _integers(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def _reader(
    plan: StepPlan | None, sequence: int, chunk: ChunkOf
) -> Callable[[], Mapping[str, Tensor]]:
    if plan is None or not chunk.job.task.keeps_rows:
        return dict
    return cache(lambda: plan.rows(sequence))
