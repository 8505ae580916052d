"""Throughput: what share of a machine's matrix products a run of training uses."""

from __future__ import annotations

import torch

from phiscope.config import PhiConfig
from phiscope.runtime import measure_matmul_peak


def count_flops_per_token(config: PhiConfig, context: int) -> float:
    """Of a forward and a backward pass, as PaLM counts them: 6 N + 12 L H D T.

    N are all weights but the embedding table; attention counts as if every token saw all T of its
    window. What is recomputed does not count: it is not what the model needs.
    """
    width = config.num_attention_heads * config.head_dim
    weights = config.num_parameters - config.vocab_size * config.hidden_size
    return 6.0 * weights + 12.0 * config.num_hidden_layers * width * context


class Utilization:
    """Model FLOPs utilization (MFU): tokens/s times FLOPs per token, over the measured peak.

    The peak is that of matrix products of Phi-2's width, in the dtype they are trained in, with all
    of this process's threads.
    """

    def __init__(
        self, config: PhiConfig, context: int, *, device: torch.device, products: torch.dtype
    ) -> None:
        self._per_token = count_flops_per_token(config, context)
        self._peak = measure_matmul_peak(device, products)

    def of(self, tokens_per_second: float, num_ranks: int) -> float:
        """The share, of all ranks together."""
        return tokens_per_second * self._per_token / (self._peak * num_ranks)
