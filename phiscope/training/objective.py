"""The objective: the summed loss of a batch, as one module whose parts can be sharded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from phiscope.model import ParallelBlock, Pass, PhiForCausalLM
from phiscope.packing import pack_lengths
from phiscope.training.batches import Batch
from phiscope.training.loss import head_loss


class Objective(nn.Module):
    """Calls the model's parts and its head's weights inside one forward.

    `products` is the dtype in which matrices are multiplied; weights and sums stay in the model's
    own. With `recompute` the states inside blocks are computed again for the gradients, and not
    kept: a third more arithmetic, and memory for one block in place of all.
    """

    def __init__(
        self,
        model: PhiForCausalLM,
        products: torch.dtype = torch.float32,
        *,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.products = products
        if recompute:
            model.model.run_blocks = recompute_in_turn

    def forward(self, input_ids: Tensor, targets: Tensor, lengths: Sequence[int]) -> Tensor:
        """The sum of the cross-entropies (nats) of all targets but those that are ignored."""
        head = self.model.lm_head
        assert head is not None
        packed = pack_lengths(lengths, device=input_ids.device)
        is_low = self.products != torch.float32
        low = self.products if is_low else torch.bfloat16
        with torch.autocast(input_ids.device.type, low, enabled=is_low):
            hidden = self.model.model(input_ids, packed)
        counts = targets >= 0
        if not bool(counts.all()):
            hidden, targets = hidden[counts], targets[counts]
        products = self.products if is_low else hidden.dtype
        return head_loss(hidden, head.weight, head.bias, targets, products=products)

    def of(self, batch: Batch) -> Tensor:
        """The loss of a batch, wherever its tokens lie."""
        device = next(self.parameters()).device
        tokens = (batch.input_ids.to(device), batch.targets.to(device))
        loss: Tensor = self(*tokens, batch.lengths)
        return loss


def recompute_in_turn(blocks: Sequence[ParallelBlock], x: Tensor, run: Pass) -> Tensor:
    """`model.run_in_turn` that keeps what goes into each block, and nothing inside it."""
    for block in blocks:
        x = checkpoint(block, x, run, use_reentrant=False, preserve_rng_state=False)
    return x
