"""Draws that are the same on every machine and with every Python, from a key written as text.

A key is hashed to the seed of a Mersenne Twister, and nothing but its `random()` is used: the one
method whose sequence Python promises never to change.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Draw:
    """A stream of choices that depends on its key alone."""

    def __init__(self, key: str) -> None:
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big")
        self._random = random.Random(seed).random

    def below(self, end: int) -> int:
        """A whole number from 0 up to, and without, `end`."""
        return int(self._random() * end)

    def between(self, first: int, last: int) -> int:
        """A whole number from `first` to `last`, both possible."""
        return first + int(self._random() * (last - first + 1))

    def happens(self, probability: float) -> bool:
        return self._random() < probability

    def pick(self, items: Sequence[Item]) -> Item:
        return items[int(self._random() * len(items))]

    def pick_weighted(self, weights: Mapping[str, float]) -> str:
        """A name, in proportion to its weight."""
        rest = self._random() * sum(weights.values())
        chosen = ""
        for name, weight in weights.items():
            if weight > 0:
                chosen = name
                rest -= weight
                if rest < 0:
                    break
        return chosen

    def some(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` of the items, none twice, in any order."""
        rest = list(items)
        for place in range(count):
            other = place + int(self._random() * (len(rest) - place))
            rest[place], rest[other] = rest[other], rest[place]
        return rest[:count]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        return self.some(items, len(items))
