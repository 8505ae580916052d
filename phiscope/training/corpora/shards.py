"""A finished folder, mapped and checked: one part's documents as a single stream of tokens.

Sizes and borders are checked when it is opened, and every id when it is read; `verify` reads all of
it and compares hashes.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phiscope.errors import TrainingError
from phiscope.training.corpora.folder import (
    MANIFEST_NAME,
    REMEDY,
    UNFINISHED_NAME,
    borders_name,
    check_files,
    tokens_name,
)
from phiscope.training.corpora.records import (
    PARTS,
    Manifest,
    Part,
    ShardRecord,
    read_manifest,
)

Integers = npt.NDArray[np.int64]
_HASHED_BYTES = 2**24


@dataclass(frozen=True, eq=False)
class Shards:
    """One part of a corpus. Made by `Shards.open`; the documents' ids each end with the end token.

    A place in the stream is a number from 0 to `num_tokens`; shards follow one another in it.
    """

    folder: Path
    part: Part
    manifest: Manifest
    tokens: tuple[npt.NDArray[Any], ...]
    """The ids of each shard, mapped."""
    borders: tuple[Integers, ...]
    """The ends of the documents within each shard, (documents,), mapped."""

    @classmethod
    def open(cls, folder: Path | str, part: Part = "train") -> "Shards":
        """Map a part of a corpus; `TrainingError` if it is unfinished, damaged, cut or empty."""
        folder = Path(folder)
        manifest = open_manifest(folder)
        if part not in PARTS:
            raise ValueError(f"no part {part!r}; choose from {PARTS}")
        if not manifest.parts[part]:
            raise TrainingError(f"{folder} has no {part} documents; build it with a share of them")
        opened = []
        for number, record in enumerate(manifest.parts[part]):
            check_files(folder, part, number, record, manifest.header)
            opened.append(_open_shard(folder, part, number, record, manifest))
        tokens, borders = zip(*opened, strict=True)
        return cls(folder, part, manifest, tokens, borders)

    @property
    def num_tokens(self) -> int:
        return self._starts[-1]

    @property
    def num_documents(self) -> int:
        return self._firsts[-1]

    @property
    def vocab_size(self) -> int:
        return int(self.manifest.header["tokenizer"]["vocab_size"])

    @property
    def eos_token_id(self) -> int:
        return int(self.manifest.header["tokenizer"]["eos_token_id"])

    @cached_property
    def digest(self) -> str:
        """A hash of the tokenizer and of all tokens and borders: what a resumed run compares."""
        whole = hashlib.sha256(self.manifest.header["tokenizer"]["sha256"].encode())
        for record in self.manifest.parts[self.part]:
            whole.update(f"{record.tokens_sha256}{record.borders_sha256}".encode())
        return whole.hexdigest()

    def read(self, start: int, stop: int) -> Integers:
        """The ids (stop - start,) int64 at these places; `TrainingError` for one that cannot be."""
        pieces = [self.tokens[shard][begin:end] for shard, begin, end in self._cut(start, stop)]
        ids = np.concatenate(pieces).astype(np.int64)
        if ids.max() >= self.vocab_size:
            raise TrainingError(
                f"{self.folder} is damaged: id {ids.max()} at a place from {start:,} is not below"
                f" {self.vocab_size}; {REMEDY}"
            )
        return ids

    def ends(self, start: int, stop: int) -> Integers:
        """The places behind documents' ends, above `start` and up to `stop`, (ends,) int64."""
        found = []
        for shard, begin, end in self._cut(start, stop):
            first, last = np.searchsorted(self.borders[shard], (begin, end), side="right")
            found.append(self.borders[shard][first:last] + self._starts[shard])
        return np.concatenate(found)

    def document(self, number: int) -> Integers:
        """The ids of a document, with its end token, (tokens,) int64."""
        if not 0 <= number < self.num_documents:
            raise IndexError(f"no document {number} among {self.num_documents}")
        shard = bisect_right(self._firsts, number) - 1
        borders, place = self.borders[shard], number - self._firsts[shard]
        begin, start = int(borders[place - 1]) if place else 0, self._starts[shard]
        return self.read(start + begin, start + int(borders[place]))

    def verify(self) -> None:
        """Read all of the part; `TrainingError` for a file that is not as it was written."""
        for number, record in enumerate(self.manifest.parts[self.part]):
            path = self.folder / tokens_name(self.part, number)
            if _hash_file(path) != record.tokens_sha256:
                raise TrainingError(f"{path} is not as it was written (sha256); {REMEDY}")

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        """The place of each shard, and of the end."""
        return tuple(accumulate((len(tokens) for tokens in self.tokens), initial=0))

    @cached_property
    def _firsts(self) -> tuple[int, ...]:
        """The number of each shard's first document, and that of all documents."""
        return tuple(accumulate((len(borders) for borders in self.borders), initial=0))

    def _cut(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The shards that hold these places, and from where to where within each."""
        if not 0 <= start < stop <= self.num_tokens:
            raise IndexError(f"no places {start} to {stop} among {self.num_tokens}")
        shard = bisect_right(self._starts, start) - 1
        while start < stop:
            first, end = self._starts[shard], min(stop, self._starts[shard + 1])
            yield shard, start - first, end - first
            start, shard = end, shard + 1


def open_manifest(folder: Path) -> Manifest:
    """The manifest of a finished corpus; `TrainingError` if the folder is none."""
    path = folder / MANIFEST_NAME
    if path.exists():
        return read_manifest(path)
    if (folder / UNFINISHED_NAME).exists():
        raise TrainingError(
            f"{folder} is an unfinished corpus; build it again with the same input and options"
        )
    raise TrainingError(f"{folder} is no corpus, as it has no {MANIFEST_NAME}")


def _open_shard(
    folder: Path, part: Part, number: int, record: ShardRecord, manifest: Manifest
) -> tuple[npt.NDArray[Any], Integers]:
    """A shard's ids and borders, the borders checked whole."""
    dtype = np.dtype(manifest.header["dtype"]).newbyteorder("<")
    tokens = np.memmap(folder / tokens_name(part, number), dtype=dtype, mode="r")
    path = folder / borders_name(part, number)
    borders = np.memmap(path, dtype="<i8", mode="r")
    if hashlib.sha256(borders.data).hexdigest() != record.borders_sha256:
        raise TrainingError(f"{path} is not as it was written (sha256); {REMEDY}")
    if borders[-1] != len(tokens):
        raise TrainingError(f"{path} ends at token {borders[-1]} of {len(tokens)}; {REMEDY}")
    return tokens, borders


def _hash_file(path: Path) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_HASHED_BYTES):
            whole.update(data)
    return whole.hexdigest()
