"""Scheduler: which completions run, in which cache slots, and what the next step does.

Pure bookkeeping without tensors. A job is one completion on its way. Jobs wait in order of arrival
for a free slot; a running job has tokens that are known and not yet in the cache, the rest of its
prompt or the token it chose last. Jobs of one family share a prompt: the first runs it, and the
others start from its slot. The first itself starts from what another slot holds of its prompt: one
that is in use, or a free one that has not been needed since.
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from phiscope.generation.prefixes import Prefix, Prefixes, find_longest


@dataclass(eq=False, kw_only=True)
class Job:
    """One completion as the scheduler sees it."""

    family: Hashable
    """Jobs of one family have the same prompt."""
    num_prompt: int
    num_tokens: int
    """Known tokens: the prompt's and those chosen."""
    num_cached: int = 0
    """How many of them the cache holds."""
    num_draft: int = 0
    """Tokens that may come after the known ones, to be run with them in the next step."""
    slot: int | None = None
    """None while it waits and when it has ended."""
    prefix_key: Hashable = None
    """Of equal keys, tokens have equal keys and values; None: like nobody else's."""
    num_reused: int = 0
    """Tokens of its prompt that lay in the cache already."""

    @property
    def num_pending(self) -> int:
        return self.num_tokens - self.num_cached

    @property
    def is_prefilling(self) -> bool:
        return self.num_cached < self.num_prompt

    def reusable_ids(self) -> Sequence[int]:
        """The tokens of its prompt that need not be run if they lie in the cache already."""
        return ()

    def shared_ids(self) -> Sequence[int]:
        """The tokens in its slot, as far as others may have them."""
        return ()


J = TypeVar("J", bound=Job)


@dataclass(frozen=True)
class Admission(Generic[J]):
    """A job that has just got its slot."""

    job: J
    source: int | None = None
    """Slot from which its cached tokens are to be copied; None: there is nothing to copy."""


@dataclass(frozen=True)
class Chunk(Generic[J]):
    """Tokens `start` to `start + length` of a job, to be run in the next step."""

    job: J
    start: int
    length: int
    num_draft: int = 0
    """How many of them, at the end, are draft tokens."""

    @property
    def num_known(self) -> int:
        return self.length - self.num_draft


class Scheduler(Generic[J]):
    """Gives out `num_slots` slots, and `token_budget` tokens for each step.

    Decodes come first, so that a long prompt never stalls them, and there is always room left for
    a prompt, so that none waits for ever.
    """

    def __init__(self, num_slots: int, token_budget: int) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, got {num_slots}")
        if token_budget < num_slots:
            raise ValueError(
                f"token_budget must be at least num_slots, for one token of each running request:"
                f" got {token_budget} for {num_slots} slots"
            )
        self.num_slots = num_slots
        self.token_budget = token_budget
        self._free = Prefixes(num_slots)
        self._waiting: deque[J] = deque()
        self._running: list[J] = []

    @property
    def running(self) -> tuple[J, ...]:
        return tuple(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_free_slots(self) -> int:
        return len(self._free)

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._running

    def add(self, job: J) -> None:
        """Put a job at the end of the queue."""
        self._waiting.append(job)

    def admit(self) -> list[Admission[J]]:
        """Give the free slots to waiting jobs, in order of arrival.

        A job whose family's prompt is being run at the moment lets others pass.
        """
        admitted: list[Admission[J]] = []
        if not self._free or not self._waiting:
            return admitted
        leaders = {job.family: job for job in self._running}
        passed: deque[J] = deque()
        while self._waiting and self._free:
            job = self._waiting.popleft()
            leader = leaders.setdefault(job.family, job)
            if leader is not job and leader.is_prefilling:
                passed.append(job)
            else:
                admitted.append(self._start(job, leader))
        self._waiting.extendleft(reversed(passed))
        return admitted

    def plan(self) -> list[Chunk[J]]:
        """Say what the next step runs: every decode, then prompts in order of admission."""
        pending = [job for job in self._running if job.num_pending]
        decodes = [job for job in pending if not job.is_prefilling]
        chunks = [
            Chunk(job, job.num_cached, job.num_pending + job.num_draft, job.num_draft)
            for job in decodes
        ]
        budget = self.token_budget - sum(chunk.length for chunk in chunks)
        for job in pending:
            if job.is_prefilling and budget > 0:
                length = min(job.num_pending, budget)
                chunks.append(Chunk(job, job.num_cached, length))
                budget -= length
        return chunks

    def finish(self, job: J) -> J | None:
        """Take the slot of a job that has ended.

        If others of its family wait, the first of them gets the slot at once, prompt and all, and
        is returned.
        """
        self._running.remove(job)
        slot, job.slot = job.slot, None
        assert slot is not None, "a running job has a slot"
        heir = next((other for other in self._waiting if other.family == job.family), None)
        if heir is None or job.is_prefilling:
            self._free.add(Prefix(slot, job.prefix_key, job.shared_ids()))
            return None
        self._waiting.remove(heir)
        heir.slot, heir.num_cached = slot, heir.num_prompt
        heir.prefix_key = job.prefix_key
        self._running.append(heir)
        return heir

    def drop(self, family: Hashable, *, keeps_prefix: bool = False) -> None:
        """Forget all jobs of a family, waiting or running, and free their slots.

        What the slots hold is kept for others only if it is known to be sound.
        """
        self._waiting = deque(job for job in self._waiting if job.family != family)
        for job in [job for job in self._running if job.family == family]:
            self._running.remove(job)
            assert job.slot is not None, "a running job has a slot"
            ids = job.shared_ids() if keeps_prefix else ()
            self._free.add(Prefix(job.slot, job.prefix_key, ids))
            job.slot = None

    def forget_prefixes(self) -> None:
        """Let no later job start from what any slot holds by now."""
        self._free.forget()
        for job in self._running:
            job.prefix_key = None

    def _start(self, job: J, leader: J) -> Admission[J]:
        if leader is not job:
            slot, _ = self._free.take(None)
            job.prefix_key = leader.prefix_key
            return self._run(job, slot, leader.slot, job.num_prompt)
        match = find_longest(self._shared(), job.prefix_key, job.reusable_ids())
        slot, source = self._free.take(match)
        job.num_reused = match.length if match else 0
        return self._run(job, slot, source, job.num_reused)

    def _shared(self) -> list[Prefix]:
        """What lies in the slots, free or in use."""
        running = [
            Prefix(job.slot, job.prefix_key, job.shared_ids())
            for job in self._running
            if job.slot is not None
        ]
        return [*self._free.held, *running]

    def _run(self, job: J, slot: int, source: int | None, num_cached: int) -> Admission[J]:
        job.slot, job.num_cached = slot, num_cached
        self._running.append(job)
        return Admission(job, source)
