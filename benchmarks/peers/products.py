"""The limit that no one passes: this machine's speed at the matrix products of one block."""

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from outcome import wait_for
from torch import Tensor

from phiscope.config import PhiConfig

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Products:
    """The linear layers of a block, with random weights in each of some dtypes."""

    def __init__(self, config: PhiConfig, dtypes: Sequence[str], device: str) -> None:
        hidden, wide = config.hidden_size, config.intermediate_size
        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        width = config.num_attention_heads * config.head_dim
        self.shapes = [
            (heads * config.head_dim, hidden),
            (hidden, width),
            (wide, hidden),
            (hidden, wide),
        ]
        layers = [make_layer(*shape) for shape in self.shapes]
        self._layers = {
            name: [(w.to(device, DTYPES[name]), b.to(device, DTYPES[name])) for w, b in layers]
            for name in dtypes
        }

    @property
    def token_flops(self) -> int:
        """Operations of one block for one token; attention's own products are not counted."""
        return 2 * sum(rows * columns for rows, columns in self.shapes)

    def measure(self, num_tokens: int, repeats: int = 3) -> dict[str, float]:
        """Operations per second by dtype, of the best of a few passes."""
        return {
            name: num_tokens * self.token_flops / min(self._time(name, num_tokens, repeats))
            for name in self._layers
        }

    def _time(self, name: str, num_tokens: int, repeats: int) -> list[float]:
        layers = self._layers[name]
        inputs = [torch.randn(num_tokens, weight.shape[1]).to(weight) for weight, _ in layers]
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            for x, (weight, bias) in zip(inputs, layers, strict=True):
                F.linear(x, weight, bias)
            wait_for(inputs[0].device)
            seconds.append(time.perf_counter() - begin)
        return seconds


def make_layer(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, columns) * columns**-0.5, torch.randn(rows) * 0.02
