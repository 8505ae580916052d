"""Log-probabilities of tokens under the model's own distribution.

They come from the logits as the model gives them, before bias, penalties and temperature, and over
every row of the embedding, so that they equal those of any other implementation. Spare ids take
their (tiny) share of the probability but are never listed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its log-probability, and the likeliest tokens at its place, likeliest first."""

    token_id: int
    logprob: float | None
    """Natural logarithm; None for the first token of a prompt, which nothing predicts."""
    top: list[tuple[int, float]]
    """Token ids and their log-probabilities."""


def read_logprobs(
    logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int], num_tokens: int
) -> list[TokenLogprob]:
    """Log-probabilities of one token for each row of logits (R, V).

    `num_top` says for each row how many of the likeliest among the first `num_tokens` ids to list.
    """
    logprobs = logits.log_softmax(dim=-1)
    ids = torch.tensor(token_ids, device=logits.device)
    chosen = logprobs.gather(-1, ids[:, None])[:, 0].tolist()
    most = min(max(num_top), num_tokens)
    values, top_ids = logprobs[:, :num_tokens].topk(most, dim=-1)
    tops = zip(top_ids.tolist(), values.tolist(), num_top, strict=True)
    lists = [list(zip(row[:n], best[:n], strict=True)) for row, best, n in tops]
    rows = zip(token_ids, chosen, lists, strict=True)
    return [TokenLogprob(token_id, logprob, top) for token_id, logprob, top in rows]
