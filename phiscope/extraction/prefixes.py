"""Prefixes: which token sequences begin alike, so that the beginning is computed once.

One level: a sequence belongs to at most one group. Sorted, sequences that share a prefix stand
together, and the ranges that share at least so many tokens are nested; from the inside out, each
range keeps the groups within it that save more than they would as part of one larger group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

LEAST_LENGTH = 8
LEAST_SAVING = 16
"""Below these a shared prefix costs more than it saves."""


@dataclass(frozen=True)
class Group:
    """Sequences whose first `length` tokens are equal."""

    length: int
    members: tuple[int, ...]

    @property
    def saving(self) -> int:
        """Tokens that need not be computed again."""
        return self.length * (len(self.members) - 1)


@dataclass
class _Range:
    """A range of the sorted sequences that is still open, and the best groups within it so far."""

    length: int
    begin: int
    groups: list[Group] = field(default_factory=list)


def group_by_prefix(sequences: Sequence[Sequence[int]]) -> list[Group]:
    """Groups of two sequences or more, by their first member; the rest share nothing worthwhile."""
    order = sorted(range(len(sequences)), key=lambda n: (tuple(sequences[n]), n))
    arrays = [np.asarray(sequences[n]) for n in order]
    shared = [_count_shared(a, b) for a, b in pairwise(arrays)]
    root = _Range(-1, 0)
    stack = [root]
    for place, length in enumerate([*shared, -1]):
        begin = place
        while stack[-1].length > length:
            closed = stack.pop()
            begin = closed.begin
            if stack[-1].length < length:
                stack.append(_Range(length, begin))
            stack[-1].groups += _best(closed, order[begin : place + 1])
        if stack[-1].length < length:
            stack.append(_Range(length, begin))
    return sorted(root.groups, key=lambda group: min(group.members))


def _best(closed: _Range, members: Sequence[int]) -> list[Group]:
    """What saves most: the range's groups, one of all, or one of the rest beside the best of them.

    The rest are those that save more in it than by themselves.
    """
    kept = [g for g in closed.groups if g.saving > closed.length * len(g.members)]
    taken = {member for group in kept for member in group.members}
    rest = Group(closed.length, tuple(sorted(set(members) - taken)))
    whole = Group(closed.length, tuple(sorted(members)))
    choices = [closed.groups, [*kept, rest], [whole]]
    return max(filter(_are_worthwhile, choices), key=_sum)


def _are_worthwhile(groups: Sequence[Group]) -> bool:
    return all(g.length >= LEAST_LENGTH and g.saving >= LEAST_SAVING for g in groups)


def _sum(groups: Sequence[Group]) -> int:
    return sum(group.saving for group in groups)


def _count_shared(a: "np.typing.NDArray[np.int64]", b: "np.typing.NDArray[np.int64]") -> int:
    """How many tokens two sequences begin with alike."""
    least = min(len(a), len(b))
    different = np.flatnonzero(a[:least] != b[:least])
    return int(different[0]) if len(different) else least
