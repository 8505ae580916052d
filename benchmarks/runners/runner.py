"""A runner: one way to run the model, in a process of its own, and what it is asked.

All runners are asked for the same three things: a prompt from an empty cache to the logits of its
last token, and single-token steps of one or of several sequences. What a library does once for a
model, such as compiling, is not timed, but every step's choice of the next tokens is.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Protocol

from outcome import peak_memory
from pipe import serve

Prompt = Sequence[int]


@dataclass
class Timed:
    """How long something took, and the tokens it chose."""

    token_ids: list[list[int]] = field(default_factory=list)
    """New tokens of each sequence."""
    seconds: float = 0.0

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Add what happens in the block to the seconds."""
        begin = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begin


class Runner(Protocol):
    """A model that is loaded and can be asked."""

    weight_bytes: int
    """What each step reads: blocks and head as they are stored, but no embeddings."""
    cache_bytes: int
    """Of one token's keys and values in the cache."""

    def prefill(self, prompt: Prompt) -> Timed:
        """Run a prompt at once and choose the token after it."""

    def decode(self, prompts: Sequence[Prompt], num_steps: int) -> Timed:
        """Time steps of one token for each prompt; running the prompts first is not timed.

        A sequence's new tokens are the one after its prompt and one of each step.
        """


def serve_runners(load: Callable[[], Mapping[str, Runner]], versions: Mapping[str, str]) -> None:
    """Answer questions about runners by name until there are no more.

    They are loaded by the first question, so that a failure is its answer.
    """
    load = cache(load)
    serve(
        {
            "settings": lambda: [describe(name, runner) for name, runner in load().items()],
            "versions": lambda: dict(versions),
            "prefill": lambda name, prompt: asdict(load()[name].prefill(prompt)),
            "decode": lambda name, prompts, num_steps: asdict(
                load()[name].decode(prompts, num_steps)
            ),
            "peak_memory": peak_memory,
        }
    )


def describe(name: str, runner: Runner) -> dict[str, Any]:
    return {
        "name": name,
        "weight_bytes": runner.weight_bytes,
        "cache_bytes": runner.cache_bytes,
    }
