"""Pieces: the sequences that are run for the texts of a shard, and who reads which of their rows.

Most texts are one piece. A long one is cut into windows, of which each gives the tokens that no
earlier window gave, so that every token counts once and (but for the first window) with at least
`window - stride` tokens before it. What texts begin with alike is one piece that several read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phiscope.extraction.inputs import Row
from phiscope.extraction.prefixes import group_by_prefix

Positions = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Text:
    """A row that can be served: its tokens, and which of them count."""

    row: Row
    ids: tuple[int, ...]
    positions: Positions
    """Of the tokens that count, ascending, one at least."""
    first: int
    """Its first row in a store of tokens."""
    end: int
    """Tokens that must be run: none after the last that counts, unless something looks ahead."""


@dataclass(frozen=True, eq=False)
class Read:
    """Rows of one piece that some texts read: those before have `order` chosen tokens already."""

    owners: tuple[int, ...]
    """Numbers of the texts; several where they share these rows."""
    rows: Positions
    """Tokens of the piece."""
    order: int
    """How many of the text's chosen tokens stand in earlier pieces."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A sequence of one forward."""

    ids: tuple[int, ...]
    reads: tuple[Read, ...]
    start: int = 0
    """Tokens before it, whose keys are known."""
    prefix: int | None = None
    """Which of the wave's prefixes it goes on from."""

    @property
    def cost(self) -> int:
        """Tokens that it counts as in a batch: a long prefix takes memory for its keys."""
        return max(len(self.ids), (self.start + len(self.ids)) // _KEYS_PER_TOKEN)


@dataclass(frozen=True, eq=False)
class Wave:
    """Prefixes run in one forward whose keys are kept, and then the pieces that go on from them."""

    prefixes: tuple[Piece, ...]
    pieces: tuple[Piece, ...]


_KEYS_PER_TOKEN = 8


def plan_waves(
    texts: Sequence[Text], *, window: int, stride: int, prefix_budget: int | None
) -> Iterator[Wave]:
    """The pieces of all texts: first those that share nothing, then prefixes with their rest.

    The prefixes of a wave hold at most `prefix_budget` tokens (or are one); None shares nothing.
    """
    whole = [number for number, text in enumerate(texts) if text.end <= window]
    groups = []
    if prefix_budget is not None:
        groups = group_by_prefix([texts[n].ids[: texts[n].end] for n in whole])
    members = [[whole[m] for m in group.members] for group in groups]
    shared = {number for group in members for number in group}
    alone = [n for n in range(len(texts)) if n not in shared]
    pieces = [p for n in alone for p in cut_windows(texts[n], n, window=window, stride=stride)]
    if pieces:
        yield Wave((), tuple(pieces))
    lengths = [group.length for group in groups]
    for wave in _fill(lengths, prefix_budget or 0):
        yield _share(texts, [(members[g], lengths[g]) for g in wave])


def cut_windows(text: Text, number: int, *, window: int, stride: int) -> Iterator[Piece]:
    """The pieces of a text that shares nothing."""
    done = 0
    for begin in range(0, max(1, text.end - window + stride), stride):
        stop = min(begin + window, text.end)
        read = _read(text, number, done, stop, begin)
        if read is not None:
            yield Piece(text.ids[begin:stop], (read,))
        done = stop


def _share(texts: Sequence[Text], groups: Sequence[tuple[list[int], int]]) -> Wave:
    prefixes, pieces = [], []
    for place, (members, length) in enumerate(groups):
        ids = texts[members[0]].ids[:length]
        prefixes.append(Piece(ids, tuple(_read_together(texts, members, length))))
        for number in members:
            text = texts[number]
            read = _read(text, number, length, text.end, length)
            if read is not None:
                pieces.append(Piece(text.ids[length : text.end], (read,), length, place))
    return Wave(tuple(prefixes), tuple(pieces))


def _read(text: Text, number: int, begin: int, end: int, offset: int) -> Read | None:
    """What a text reads of the positions [begin, end), as rows of a piece that starts at offset."""
    first, last = np.searchsorted(text.positions, [begin, end])
    if first == last:
        return None
    return Read((number,), text.positions[first:last] - offset, int(first))


def _read_together(texts: Sequence[Text], members: Sequence[int], length: int) -> Iterator[Read]:
    """The reads of a prefix; texts that choose the same of its tokens share one."""
    owners: dict[bytes, list[int]] = {}
    rows: dict[bytes, Positions] = {}
    for number in members:
        chosen = texts[number].positions
        chosen = chosen[: np.searchsorted(chosen, length)]
        rows[chosen.tobytes()] = chosen
        owners.setdefault(chosen.tobytes(), []).append(number)
    for key, numbers in owners.items():
        if len(rows[key]):
            yield Read(tuple(numbers), rows[key], 0)


def _fill(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Consecutive numbers whose lengths add up to at most the budget, or single ones."""
    wave: list[int] = []
    for number, length in enumerate(lengths):
        if wave and sum(lengths[n] for n in wave) + length > budget:
            yield wave
            wave = []
        wave.append(number)
    if wave:
        yield wave
