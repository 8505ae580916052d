"""The cells of the speed table: what is run, the least time it could take, and what it took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from phiscope.config import PhiConfig

MEAN_CONTEXT = 96
"""Tokens in the cache, in the middle of the steps."""
NUM_TOKENS = 50_257
"""GPT-2's. Phiscope samples no other id, which random weights may prefer."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """So many sequences; their prompts are timed where there are no steps."""

    name: str
    num_sequences: int
    num_prompt: int
    num_steps: int = 0

    @property
    def num_timed(self) -> int:
        """Tokens whose time is taken, of all sequences."""
        return self.num_sequences * (self.num_steps or self.num_prompt)

    def make_prompts(self, vocab_size: int, seed: int) -> list[list[int]]:
        """The same for everybody, and others for each seed: nobody has seen them before."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.num_sequences, self.num_prompt)
        limit = min(vocab_size, NUM_TOKENS)
        return torch.randint(0, limit, shape, generator=generator).tolist()

    def count_flops(self, config: PhiConfig) -> float:
        """Of all timed products with weights; a prompt needs logits at its end only."""
        steps = self.num_steps or 1
        head = 2 * config.vocab_size * config.hidden_size
        token = count_block_flops(config) * config.num_hidden_layers
        return self.num_timed * token + steps * self.num_sequences * head

    def count_attention_flops(self, config: PhiConfig) -> float:
        """Of queries with the keys that they see, and of weights with values."""
        context = MEAN_CONTEXT if self.num_steps else self.num_prompt / 2
        width = config.num_attention_heads * config.head_dim
        return 4 * self.num_timed * context * width * config.num_hidden_layers

    def count_bytes(self, weight_bytes: int, cache_bytes: int) -> float:
        """Read from memory at least: each step reads all weights and its sequences' caches."""
        cached = self.num_sequences * MEAN_CONTEXT * cache_bytes
        return self.num_steps * (weight_bytes + cached) if self.num_steps else float(weight_bytes)


def count_block_flops(config: PhiConfig) -> int:
    """Of the linear layers of a block for one token."""
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    width = config.num_attention_heads * config.head_dim
    rows = heads * config.head_dim + width + 2 * config.intermediate_size
    return 2 * config.hidden_size * rows


def make_cells(num_steps: int) -> list[Cell]:
    prompt = MEAN_CONTEXT - num_steps // 2
    return [
        Cell(name="prefill", num_sequences=1, num_prompt=512),
        Cell(name="decode_1", num_sequences=1, num_prompt=prompt, num_steps=num_steps),
        Cell(name="decode_8", num_sequences=8, num_prompt=prompt, num_steps=num_steps),
    ]


@dataclass(frozen=True)
class Limits:
    """What the machine did beside a cell: bytes and operations per second."""

    bandwidth: float
    peaks: Mapping[str, float]

    def best(self, other: "Limits") -> "Limits":
        """What it can do at least, as neighbours slow down the one or the other measurement."""
        peaks = {kind: max(peak, other.peaks[kind]) for kind, peak in self.peaks.items()}
        return Limits(max(self.bandwidth, other.bandwidth), peaks)


@dataclass
class Series:
    """All turns of one setting at one cell."""

    cell: Cell
    flops: float
    attention_flops: float
    bytes_read: float
    arithmetic: str
    """Of products with weights; attention of integers is in fp32."""
    seconds: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    """Seconds that the machine's limits allowed, in the same turn."""
    token_ids: list[list[int]] = field(default_factory=list)
    """The first new token of each sequence, for each turn."""

    def add(self, answer: Mapping[str, Any], limits: Limits) -> None:
        """An answer, and the limits measured beside it."""
        self.seconds.append(answer["seconds"])
        reading = self.bytes_read / limits.bandwidth
        floats = "fp32" if self.arithmetic == "int8" else self.arithmetic
        multiplying = self.flops / limits.peaks[self.arithmetic]
        multiplying += self.attention_flops / limits.peaks[floats]
        self.limits.append(max(reading, multiplying))
        self.token_ids.append([tokens[0] for tokens in answer["token_ids"]])

    def summarise(self) -> dict[str, Any]:
        """Speeds are of the median turn; shares are of each turn's own limit, their median."""
        pairs = list(zip(self.limits, self.seconds, strict=True))
        middle = median(self.seconds)
        return {
            "tokens_per_second": round(self.cell.num_timed / middle, 2),
            "limit_tokens_per_second": round(self.cell.num_timed / median(self.limits), 2),
            "share_of_limit": round(median(limit / took for limit, took in pairs), 3),
            "median_seconds": round(middle, 5),
            "seconds": [round(x, 5) for x in self.seconds],
            "limit_seconds": [round(x, 5) for x in self.limits],
            "flops": self.flops + self.attention_flops,
            "bytes": self.bytes_read,
        }


def count_same(tokens: Sequence[list[int]], reference: Sequence[list[int]]) -> tuple[int, int]:
    """How many first tokens are the reference's, and of how many that are tokens at all."""
    pairs = [
        pair
        for row, expected in zip(tokens, reference, strict=True)
        for pair in zip(row, expected, strict=True)
        if pair[1] < NUM_TOKENS
    ]
    return sum(one == other for one, other in pairs), len(pairs)
