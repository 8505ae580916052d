"""Chunks of completions as a forward takes them, and what it gives for each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from phiscope.generation.completion import CompletionJob
from phiscope.generation.scheduler import Chunk

ChunkOf = Chunk[CompletionJob]


@dataclass(frozen=True)
class ChunkResult:
    """What a forward gave for one chunk."""

    chunk: ChunkOf
    logits: Tensor
    """(R, V): of the last R tokens of the chunk, as many as are wanted."""
    is_finite: bool
    """Whether all of the logits are."""
    read_rows: Callable[[], Mapping[str, Tensor]]
    """Gives the rows of the points it inspects; may refuse them."""
    greedy_id: int | None = None
    """The likeliest token by the last logits, where the forward has looked for it."""

    @property
    def last_logits(self) -> Tensor:
        """(1 + k, V): of the last known token and of the draft tokens."""
        return self.logits[-1 - self.chunk.num_draft :]


def count_logits(chunk: ChunkOf) -> int:
    """How many of a chunk's last tokens need their logits."""
    job = chunk.job
    if job.task.keeps_logits:
        return chunk.length
    if not job.is_prefilling:
        return 0 if job.has_ended else 1 + chunk.num_draft
    if job.task.scores_prompt:
        return chunk.length
    return 1 if chunk.start + chunk.length == job.num_prompt else 0


def list_ids(chunk: ChunkOf) -> list[int]:
    """The tokens of a chunk, of which the first is known."""
    job, start = chunk.job, chunk.start
    if not job.is_prefilling:
        return [*job.token_ids[start - job.num_prompt :], *job.draft.token_ids]
    assert job.task.prompt.ids is not None, "a prompt without embeddings has ids"
    return job.task.prompt.ids[start : start + chunk.length]
