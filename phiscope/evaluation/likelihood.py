"""Likelihood: how probable a model finds a text, token by token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phiscope.activations.edits import Edit
from phiscope.activations.forward import capture_batches
from phiscope.activations.keeping import Keep
from phiscope.activations.points import Point
from phiscope.model import PhiForCausalLM

HEAD_ROWS = 256
"""Rows whose logits are in memory at once: a whole context of phi-2 would be 420 MB of them."""


@dataclass(frozen=True)
class Score:
    """`logprobs[i]` belongs to `token_ids[i]`, given all tokens before it; in nats."""

    token_ids: list[int]
    logprobs: list[float]

    @property
    def log_likelihood(self) -> float:
        """The sum of the log-probabilities."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of a token."""
        return math.exp(-self.log_likelihood / len(self.logprobs))


def score_tokens(model: PhiForCausalLM, ids: Sequence[int], *, edits: Sequence[Edit] = ()) -> Score:
    """Score every token but the first; `ValueError` for fewer than two."""
    if len(ids) < 2:
        raise ValueError(f"a text to score has two tokens at least, got {len(ids)}")
    point = Point("final_norm")
    ((_, plan),) = capture_batches(model, [ids], [point], edits=edits, keep=Keep(device=None))
    hidden = plan.rows(0)[str(point)][:-1]  # what the last token predicts is not in the text
    targets = torch.tensor(ids[1:], device=hidden.device)
    logprobs = [
        _logprobs(model, hidden[begin : begin + HEAD_ROWS], targets[begin : begin + HEAD_ROWS])
        for begin in range(0, len(targets), HEAD_ROWS)
    ]
    return Score(list(ids[1:]), torch.cat(logprobs).tolist())


@torch.inference_mode()
def _logprobs(model: PhiForCausalLM, hidden: Tensor, targets: Tensor) -> Tensor:
    """Of each target (R,) after its row of `hidden` (R, hidden)."""
    return model.logits(hidden).log_softmax(dim=-1).gather(-1, targets[:, None])[:, 0]
