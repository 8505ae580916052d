"""The texts of the benchmark: random token ids, in blocks that are alike.

Lengths are quantiles of their distribution, so that none is a matter of luck. All texts together,
sorted by length, form batches of 8; each block gets as many of these batches, the longest first to
the block with the fewest tokens, and shuffles its texts. So who sorts loses nothing by the blocks.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import NormalDist

BATCH = 8
SHORTEST, LONGEST = 20, 512
MEDIAN, SIGMA = 50, 0.7
SHORT_RANGE = (5, 30)
NUM_IDS = 50_256
"""Ids below the special ones."""

Text = list[int]


@dataclass(frozen=True)
class Corpus:
    """Texts as token ids, by blocks."""

    name: str
    what: str
    blocks: tuple[tuple[Text, ...], ...]

    @property
    def block_tokens(self) -> list[int]:
        return [count_tokens(block) for block in self.blocks]

    def describe(self) -> dict[str, object]:
        lengths = [len(text) for block in self.blocks for text in block]
        orders = {"as the texts come": in_order, "sorted": sorted_by_length}
        return {
            "what": self.what,
            "texts": len(lengths),
            "tokens": sum(lengths),
            "lengths": [min(lengths), max(lengths)],
            "block_tokens": self.block_tokens,
            f"real_tokens_in_batches_of_{BATCH}": {
                name: round(sum(lengths) / self._count_padded(order), 3)
                for name, order in orders.items()
            },
        }

    def _count_padded(self, order) -> int:
        batches = [[block[i] for i in rows] for block in self.blocks for rows in order(block)]
        return sum(len(batch) * max(len(text) for text in batch) for batch in batches)


def make_lognormal(count: int, num_blocks: int, seed: int = 0) -> Corpus:
    """Lengths of 20 to 512 tokens, half of them below 50."""
    normal, places = NormalDist(log(MEDIAN), SIGMA), range(count)
    wanted = (round(exp(normal.inv_cdf((place + 0.5) / count))) for place in places)
    lengths = [min(LONGEST, max(SHORTEST, length)) for length in wanted]
    what = f"lognormal, median {MEDIAN}, sigma {SIGMA}, cut to {SHORTEST}..{LONGEST}"
    return make_corpus("lognormal", what, lengths, num_blocks, seed)


def make_short(count: int, num_blocks: int, seed: int = 1) -> Corpus:
    """Lengths of 5 to 30 tokens, all equally frequent."""
    first, last = SHORT_RANGE
    lengths = [first + place * (last + 1 - first) // count for place in range(count)]
    return make_corpus("short", f"even, {first}..{last}", lengths, num_blocks, seed)


def make_corpus(name: str, what: str, lengths: Iterable[int], num_blocks: int, seed: int) -> Corpus:
    rng = random.Random(seed)
    texts = [make_text(length, rng) for length in sorted(lengths, reverse=True)]
    if num_blocks > 1 and len(texts) % (BATCH * num_blocks):
        raise SystemExit(f"{len(texts)} texts are not {num_blocks} blocks of batches of {BATCH}")
    blocks: list[list[Text]] = [[] for _ in range(num_blocks)]
    for begin in range(0, len(texts), BATCH):
        open_blocks = [block for block in blocks if len(block) < len(texts) // num_blocks]
        min(open_blocks, key=count_tokens).extend(texts[begin : begin + BATCH])
    for block in blocks:
        rng.shuffle(block)
    return Corpus(name, what, tuple(tuple(block) for block in blocks))


def make_text(length: int, rng: random.Random) -> Text:
    return [rng.randrange(NUM_IDS) for _ in range(length)]


def count_tokens(texts: Iterable[Sequence[int]]) -> int:
    return sum(len(text) for text in texts)


def in_order(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Batches of 8 as the texts come."""
    return cut(list(range(len(texts))))


def sorted_by_length(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Batches of 8, longest first."""
    return cut(sorted(range(len(texts)), key=lambda row: -len(texts[row])))


def one_by_one(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Each text alone: no padding."""
    return [[row] for row in range(len(texts))]


def cut(rows: list[int]) -> list[list[int]]:
    return [rows[begin : begin + BATCH] for begin in range(0, len(rows), BATCH)]
