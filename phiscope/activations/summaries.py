"""Summaries of attention maps: one number for each head and token, in place of a whole map."""

from collections.abc import Callable

import torch
from torch import Tensor


def entropy(probs: Tensor) -> Tensor:
    """How spread each query's attention is, in nats: (heads, T, K) to (T, heads)."""
    spread: Tensor = torch.special.entr(probs)
    return spread.sum(dim=-1).T


def received(probs: Tensor) -> Tensor:
    """The attention that each key gets from all queries together: (heads, T, K) to (K, heads)."""
    return probs.sum(dim=1).T


SUMMARIES: dict[str, Callable[[Tensor], Tensor]] = {
    "attn_entropy": entropy,
    "attn_received": received,
}
"""By the name of the point."""
