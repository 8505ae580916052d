"""Documents packed for training: one stream of tokens, cut into windows of the context's length.

Each document ends with `<|endoftext|>`, and a window may hold the end of one and the beginning of
the next: at 512 tokens the few places where attention crosses a border cost less than the padding
or the sorting that would avoid it. The stream is a ring that each epoch enters at another place, so
a document is not cut twice at the same points, and every token is a target once per epoch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from phiscope.tokenizer import Tokenizer
from phiscope.training.bars import shown
from phiscope.training.batches import Batch
from phiscope.training.corpus import Document

Ids = npt.NDArray[np.uint16]
MAX_VOCAB = 2**16
_BATCH_DOCUMENTS = 64


def write_tokens(
    documents: Iterable[Document], tokenizer: Tokenizer, path: Path, *, multiple_of: int = 1
) -> int:
    """Write the documents' ids, two bytes each, and return how many; ends are added to fill up.

    Raises `ValueError` if the vocabulary does not fit two bytes.
    """
    if tokenizer.vocab_size > MAX_VOCAB:
        raise ValueError(f"{tokenizer.vocab_size} ids do not fit two bytes; at most {MAX_VOCAB}")
    partial = path.with_name(path.name + ".partial")
    count, end = 0, [tokenizer.eos_token_id]
    with partial.open("wb") as file:
        for some in _batches(shown(documents, "tokens, documents")):
            for ids in tokenizer.encode_batch([one.text for one in some], allow_special=False):
                np.array(ids + end, dtype=np.uint16).tofile(file)
                count += len(ids) + 1
        fill = end * (-count % multiple_of)
        np.array(fill, dtype=np.uint16).tofile(file)
    os.replace(partial, path)
    return count + len(fill)


def read_tokens(path: Path) -> Ids:
    """The ids of a file, mapped and not read."""
    return np.memmap(path, dtype=np.uint16, mode="r")


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    rest = iter(documents)
    while some := list(islice(rest, _BATCH_DOCUMENTS)):
        yield some


@dataclass(frozen=True)
class Windows:
    """A ring of tokens as windows of `length`, in an order of its own each epoch.

    `batch` depends on nothing but its arguments and the fields, so a resumed run needs to know its
    step only. `tokens` must hold a multiple of `length`.
    """

    tokens: Ids
    length: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.tokens) < self.length or len(self.tokens) % self.length:
            raise ValueError(
                f"{len(self.tokens)} tokens are no multiple of the windows' length {self.length}"
            )

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return len(self.tokens) // self.length

    def batch(self, number: int, size: int) -> Batch:
        """Windows `number * size` and so on: a target is the token behind its input."""
        rows = np.stack([self._row(number * size + index) for index in range(size)])
        whole = torch.from_numpy(rows.astype(np.int64))
        return Batch(whole[:, :-1].flatten(), whole[:, 1:].flatten(), [self.length] * size)

    def _row(self, drawn: int) -> Ids:
        """The window drawn as number `drawn` since training began, and the token behind it."""
        epoch, place = divmod(drawn, self.num_windows)
        order, entry = self._epoch(epoch)
        start = entry + int(order[place]) * self.length
        return self.tokens.take(range(start, start + self.length + 1), mode="wrap")

    def _epoch(self, epoch: int) -> tuple[npt.NDArray[np.int64], int]:
        """The order of windows in an epoch, and where it enters the ring."""
        if epoch not in self._orders:
            draw = np.random.default_rng([self.seed, epoch])
            self._orders.clear()
            self._orders[epoch] = (
                draw.permutation(self.num_windows),
                int(draw.integers(self.length)),
            )
        return self._orders[epoch]

    @cached_property
    def _orders(self) -> dict[int, tuple[npt.NDArray[np.int64], int]]:
        return {}
