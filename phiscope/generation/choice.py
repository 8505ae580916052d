"""Choice: the tokens that a step chooses, with their log-probabilities, in one pass over all rows.

A row per completion, and one more for each of its draft tokens: what is chosen there counts as long
as every draft token before it was itself what was chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from phiscope.generation.completion import CompletionJob
from phiscope.generation.logprobs import TokenLogprob, read_logprobs
from phiscope.generation.sampling import choose_tokens


@dataclass(frozen=True, eq=False)
class Due:
    """A completion that chooses next."""

    job: CompletionJob
    logits: Tensor
    """(1 + k, V): of its last token and of k draft tokens."""
    greedy_id: int | None = None
    """The likeliest token by the last of the logits, if it is known already."""

    @property
    def certain_id(self) -> int | None:
        """The token that is certain to be chosen and needs no more than to be told."""
        options = self.job.task.options
        changes = options.uses_counts or options.logit_bias or options.logprobs is not None
        is_plain = not (changes or options.temperature or len(self.logits) > 1)
        return self.greedy_id if is_plain else None


class Choice(NamedTuple):
    """A token chosen."""

    token_id: int | None
    """None where nothing was left to choose."""
    logprob: TokenLogprob | None
    is_draft: bool
    """Whether it is the draft token of its place, which has thus been run."""


def choose(due: Sequence[Due], num_tokens: int) -> list[list[Choice]]:
    """Choose for each completion, in order, as many tokens as its draft lets it, one at least."""
    certain = [one.certain_id for one in due]
    if None not in certain:
        return [[Choice(token_id, None, is_draft=False)] for token_id in certain]
    logits = torch.cat([one.logits for one in due])  # (R, V)
    places = [(one.job, place) for one in due for place in range(len(one.logits))]
    states = [job.sampling.ahead(job.draft.token_ids[:place]) for job, place in places]
    borders = list(pairwise(accumulate((len(one.logits) for one in due), initial=0)))
    checked = [row + i for row, end in borders for i in range(end - row - 1)]
    drafted = {row: places[row][0].draft.proposal(places[row][1]) for row in checked}
    proposals = {row: proposal for row, proposal in drafted.items() if proposal is not None}
    ids, is_possible = choose_tokens(logits, states, num_tokens, proposals)
    token_ids, flags = torch.stack((ids, is_possible.to(ids))).tolist()  # one wait for a GPU
    logprobs = _read_logprobs([job for job, _ in places], logits, token_ids, num_tokens)
    chosen = [token_id if flag else None for token_id, flag in zip(token_ids, flags, strict=True)]
    return [
        _accept(one.job, chosen[begin:end], logprobs[begin:end])
        for one, (begin, end) in zip(due, borders, strict=True)
    ]


def _accept(
    job: CompletionJob, chosen: Sequence[int | None], logprobs: Sequence[TokenLogprob | None]
) -> list[Choice]:
    """Go on while the draft token is what was chosen."""
    choices: list[Choice] = []
    for place, (token_id, logprob) in enumerate(zip(chosen, logprobs, strict=True)):
        is_last = place == len(chosen) - 1
        is_draft = not is_last and token_id == job.draft.token_ids[place]
        choices.append(Choice(token_id, logprob, is_draft))
        if not is_draft:
            break
    return choices


def _read_logprobs(
    jobs: Sequence[CompletionJob], logits: Tensor, token_ids: Sequence[int], num_tokens: int
) -> list[TokenLogprob | None]:
    """For each row whose job asks for it."""
    tops = [
        (row, n) for row, job in enumerate(jobs) if (n := job.task.options.logprobs) is not None
    ]
    found: list[TokenLogprob | None] = [None] * len(jobs)
    if tops:
        rows = [row for row, _ in tops]
        chosen = [token_ids[row] for row in rows]
        logprobs = read_logprobs(logits[rows], chosen, [n for _, n in tops], num_tokens)
        for row, logprob in zip(rows, logprobs, strict=True):
            found[row] = logprob
    return found
