"""Prefixes: what free cache slots still hold, for prompts that begin alike.

Pure bookkeeping. Tokens alone do not make keys and values: each entry has the key of what else did,
and only an equal key finds it.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Prefix:
    """Tokens whose keys and values lie in a slot."""

    slot: int
    key: Hashable
    token_ids: Sequence[int]


@dataclass(frozen=True)
class Match:
    """A slot that holds the first `length` tokens of a prompt."""

    prefix: Prefix
    length: int

    @property
    def uses_half(self) -> bool:
        """Whether the slot may as well be taken over: little else is in it."""
        return 2 * self.length >= len(self.prefix.token_ids)


class Prefixes:
    """The free slots, least recently used first, and what they hold."""

    def __init__(self, num_slots: int) -> None:
        self._free = list(range(num_slots))
        self._held: dict[int, Prefix] = {}

    def __len__(self) -> int:
        return len(self._free)

    @property
    def held(self) -> Iterable[Prefix]:
        return self._held.values()

    def add(self, prefix: Prefix) -> None:
        """Take back a slot with what it holds; one that holds nothing is the next to go."""
        if prefix.token_ids:
            self._free.append(prefix.slot)
            self._held[prefix.slot] = prefix
        else:
            self._free.insert(0, prefix.slot)

    def take(self, match: Match | None) -> tuple[int, int | None]:
        """Give out a slot, and the slot from which the match is to be copied.

        That is None where nothing matches or the slot that matches is given out itself.
        """
        if match is None:
            return self._pop(0), None
        source = match.prefix.slot
        if source not in self._held:  # in use
            return self._pop(0), source
        place = self._free.index(source)
        if place == 0 or match.uses_half:
            return self._pop(place), None
        self._free.append(self._free.pop(place))
        return self._pop(0), source

    def forget(self) -> None:
        """Forget what the free slots hold. Those that held something go next: no new memory."""
        self._free.sort(key=lambda slot: slot not in self._held)
        self._held.clear()

    def _pop(self, place: int) -> int:
        slot = self._free.pop(place)
        self._held.pop(slot, None)
        return slot


def find_longest(
    prefixes: Iterable[Prefix], key: Hashable, token_ids: Sequence[int]
) -> Match | None:
    """The prefix that shares most with these tokens."""
    found = [Match(p, count_shared(p.token_ids, token_ids)) for p in prefixes if p.key == key]
    best = max(found, key=lambda match: match.length, default=None)
    return best if best is not None and best.length else None


def count_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
