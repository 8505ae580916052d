"""Packed windows of one corpus, in an order of its own each epoch.

The stream of documents is a ring that each epoch enters at another place and cuts into windows, so
that a document is not cut twice at the same points. Windows come in the order of a keyed bijection.
Which window comes as which is a function of its number, so that a resumed run needs its step only.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, get_args

import numpy as np
import torch

from phiscope.training.batches import IGNORED, Batch
from phiscope.training.corpora.permutation import draw_integer, make_keys, permute
from phiscope.training.corpora.shards import Integers, Shards

Packing = Literal["across", "documents"]
PACKINGS: tuple[str, ...] = get_args(Packing)


class Drawn(Protocol):
    """What gives windows by their number since training began."""

    def window(self, number: int) -> Batch: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """A corpus as windows of `length` tokens, shuffled anew each epoch.

    With `packing="across"` a window is one sequence, and attention crosses documents' borders. With
    "documents" each piece of a document in it is a sequence of its own, which begins at position 0,
    and the target of an end token, which is another document's first token, is `IGNORED`.

    Each token is a target once per epoch, but with "documents" not the first ones of documents. The
    last window of an epoch is filled up with the tokens that the epoch began with, whose targets
    are `IGNORED`.
    """

    shards: Shards
    length: int
    seed: int = 0
    packing: Packing = "across"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"windows need a length of at least 1, got {self.length}")
        if self.packing not in PACKINGS:
            raise ValueError(f"no packing {self.packing!r}; choose from {PACKINGS}")

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return -(-self.shards.num_tokens // self.length)

    @property
    def digest(self) -> str:
        """A hash of all that decides which window comes as which: what a resumed run compares."""
        fields = (self.shards.digest, self.length, self.seed, self.packing)
        return hashlib.sha256(repr(fields).encode()).hexdigest()

    def batch(self, step: int, size: int, rank: int = 0, num_ranks: int = 1) -> Batch:
        """The windows of a step, or a rank's share of them: the same for any number of ranks.

        Raises `ValueError` if `num_ranks` does not divide `size`.
        """
        return gather(self, step, size, rank, num_ranks)

    def window(self, number: int) -> Batch:
        """The window drawn as number `number` since training began."""
        epoch, place = divmod(number, self.num_windows)
        keys = make_keys("windows", self.seed, epoch)
        begin = permute(place, self.num_windows, keys) * self.length
        entry = draw_integer(self.shards.num_tokens, "entry", self.seed, epoch)
        ids = self._read(entry + begin, self.length + 1)
        targets = ids[1:].copy()
        targets[self.shards.num_tokens - begin :] = IGNORED
        lengths = self._cut(entry + begin, targets)
        return Batch(torch.from_numpy(ids[:-1].copy()), torch.from_numpy(targets), lengths)

    def _cut(self, place: int, targets: Integers) -> list[int]:
        """The lengths of a window's sequences; targets behind documents' ends are taken out."""
        if self.packing == "across":
            return [self.length]
        ends = self._ends(place)
        targets[ends - 1] = IGNORED
        inner = ends[ends < self.length].tolist()
        return [end - begin for begin, end in pairwise([0, *inner, self.length])]

    def _read(self, place: int, count: int) -> Integers:
        """Ids at places of the ring."""
        return np.concatenate([self.shards.read(*ends) for ends in self._unroll(place, count)])

    def _ends(self, place: int) -> Integers:
        """Where documents end in the window at a place of the ring, from 1 to its length."""
        found, passed = [], 0
        for start, stop in self._unroll(place, self.length):
            found.append(self.shards.ends(start, stop) - start + passed)
            passed += stop - start
        return np.concatenate(found)

    def _unroll(self, place: int, count: int) -> Iterator[tuple[int, int]]:
        """The ranges of the stream that places of the ring are, one behind the other."""
        size = self.shards.num_tokens
        while count:
            start = place % size
            stop = min(size, start + count)
            yield start, stop
            place, count = stop, count - (stop - start)


def gather(drawn: Drawn, step: int, size: int, rank: int, num_ranks: int) -> Batch:
    """The windows numbered [step * size, (step + 1) * size), of which each rank has a run."""
    if not 0 <= rank < num_ranks:
        raise ValueError(f"no rank {rank} of {num_ranks}")
    if size < 1 or size % num_ranks:
        raise ValueError(f"{num_ranks} ranks cannot share a batch of {size} windows evenly")
    if step < 0:
        raise ValueError(f"a step is a number from 0, got {step}")
    share = size // num_ranks
    first = step * size + rank * share
    return join([drawn.window(first + index) for index in range(share)])


def join(batches: Sequence[Batch]) -> Batch:
    """Batches laid end to end."""
    return Batch(
        torch.cat([batch.input_ids for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
        [length for batch in batches for length in batch.lengths],
    )
