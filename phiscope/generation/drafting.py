"""Drafting: guesses of the tokens to come, which one forward of the model then checks together.

A drafter decides nothing. What it guesses right saves a step; the tokens chosen follow the model's
own distribution whatever it guesses. What is drafted for a completion depends on that completion
alone, so that a seed means the same in any batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from phiscope.generation.sampling import Proposal, SamplingState

PROMPT_LOOKUP = "prompt-lookup"
DRAFT_TOKENS = 4
"""Drafted for each step unless the options say otherwise."""
_LONGEST, _SHORTEST = 3, 1
"""Tokens at the end of the text that are looked for in what stands before them."""


@dataclass(frozen=True, eq=False)
class Draft:
    """Draft tokens, and the probabilities (k, V) they were drawn with; None: they are certain."""

    token_ids: tuple[int, ...] = ()
    probs: Tensor | None = None

    def proposal(self, place: int) -> Proposal | None:
        """The draft token at a place, if it was drawn."""
        if self.probs is None or place >= len(self.token_ids):
            return None
        return Proposal(self.token_ids[place], self.probs[place])


@dataclass(frozen=True, kw_only=True, eq=False)
class DraftAsk:
    """What a drafter is told of one completion."""

    token_ids: Sequence[int]
    """All known tokens, prompt and completion."""
    num_wanted: int
    """Draft tokens wanted, at least 1."""
    slot: int
    sampling: SamplingState
    """One for each completion, as it is after its last token."""


class Drafter(Protocol):
    """Guesses how completions go on."""

    def draft(self, asks: Sequence[DraftAsk]) -> list[Draft]:
        """A draft for each completion, of as many tokens as are wanted or fewer."""


class PromptLookup:
    """Goes on as the text did where its last tokens stood before: arXiv:2304.04487.

    The latest place with the longest match counts, and the copy may run on into itself.
    """

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    def draft(self, asks: Sequence[DraftAsk]) -> list[Draft]:
        """See `Drafter`; nothing is drafted where nothing is found."""
        return [Draft(self._drop_spare(look_up(a.token_ids, a.num_wanted))) for a in asks]

    def _drop_spare(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The tokens before the first spare id, which a prompt may have and a completion not."""
        spare = (i for i, token_id in enumerate(token_ids) if token_id >= self._num_tokens)
        return tuple(token_ids[: next(spare, len(token_ids))])


def look_up(token_ids: Sequence[int], num_wanted: int) -> list[int]:
    """The tokens that followed the latest earlier place of the last ones; [] if there is none."""
    ids = np.asarray(token_ids)
    for size in range(min(_LONGEST, len(ids) - 1), _SHORTEST - 1, -1):
        num_places = len(ids) - size
        is_match = np.ones(num_places, dtype=bool)
        for offset in range(size):
            is_match &= ids[offset : offset + num_places] == ids[num_places + offset]
        if is_match.any():
            return _copy_on(ids, int(is_match.nonzero()[0][-1]) + size, num_wanted)
    return []


def _copy_on(ids: np.ndarray, start: int, num_wanted: int) -> list[int]:
    """`num_wanted` tokens from `start` on; behind the end stands the copy itself."""
    period = len(ids) - start
    return [int(ids[start + i % period]) for i in range(num_wanted)]
