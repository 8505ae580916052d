"""The loss of a language model without its logits: head and cross-entropy in one, slice by slice.

At 4096 ids the logits of a batch are larger than all other activations together. Each slice of rows
makes its logits in one buffer, turns them into their own gradient, and is gone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 1024


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    *,
    products: torch.dtype | None = None,
) -> Tensor:
    """The sum over rows of the cross-entropy, in nats, of a linear head.

    hidden (N, hidden), weight (V, hidden), bias (V,), targets (N,) int64; equals
    `F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")` and its gradients.
    `products` is the type that matrices are multiplied in (default: that of `hidden`); sums and
    exponentials are in that of `weight`, but fp32 at least. A frozen head costs no gradients.
    """
    products = hidden.dtype if products is None else products
    total: Tensor = _HeadLoss.apply(hidden, weight, bias, targets, products)  # type: ignore[no-untyped-call]
    return total


class _HeadLoss(torch.autograd.Function):
    """Gradients are made with the loss, while the slice's logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        products: torch.dtype,
    ) -> Tensor:
        ctx.given = hidden.dtype
        hidden, head = hidden.to(products), weight.to(products)
        wide = torch.promote_types(weight.dtype, torch.float32)
        total = weight.new_zeros((), dtype=wide)
        wants_any, wants_head = any(ctx.needs_input_grad), any(ctx.needs_input_grad[1:3])
        grads = [torch.empty_like(hidden)] if wants_any else []
        grads += map(torch.zeros_like, (weight, bias)) if wants_head else []
        for begin in range(0, len(hidden), ROWS):
            rows = slice(begin, begin + ROWS)
            logits = torch.mm(hidden[rows], head.t()).to(wide).add_(bias)  # (R, V)
            norm = logits.logsumexp(-1)
            total += (norm - logits.gather(1, targets[rows, None])[:, 0]).sum()
            if wants_any:
                error = _into_error(logits, norm, targets[rows])
                if wants_head:
                    grads[2] += error.sum(0)
                error = error.to(products)
                torch.mm(error, head, out=grads[0][rows])
                if wants_head:
                    grads[1] += torch.mm(error.t(), hidden[rows])
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *head = ctx.saved_tensors
        by = outer[0]
        weight, bias = (x * by.to(x.dtype) for x in head) if head else (None, None)
        return hidden.to(ctx.given) * by.to(ctx.given), weight, bias, None, None


def _into_error(logits: Tensor, norm: Tensor, targets: Tensor) -> Tensor:
    """Turn logits, in place, into their own gradient: the softmax less the one-hot target."""
    error = logits.sub_(norm[:, None]).exp_()
    return error.scatter_add_(1, targets[:, None], error.new_full((len(error), 1), -1.0))
