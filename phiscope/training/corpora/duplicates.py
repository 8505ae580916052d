"""Duplicates: texts that were there before, to the letter or nearly.

Nearly is the Jaccard similarity of the sets of runs of five words, estimated by MinHash (Broder,
1997) and looked up by locality-sensitive hashing. Of similar documents the first is kept. Memory
holds about 100 bytes of each document and, for near duplicates, 6 kB.
"""

import re
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from phiscope.errors import MissingExtraError
from phiscope.training.corpora.options import CorpusOptions

if TYPE_CHECKING:
    from datasketch import MinHash

_WORD = re.compile(r"\w+")
_RUN = 5
_NUM_HASHES = 128
_FOUND = 0.95
"""Of pairs as similar as the threshold, at least so many are compared."""


class Duplicates:
    """Remembers the documents kept so far. Raises `MissingExtraError` without datasketch."""

    def __init__(self, options: CorpusOptions) -> None:
        self._digests: set[bytes] = set()
        threshold = options.near_duplicates
        self._near = None if threshold is None else _NearDuplicates(threshold, options.seed)

    def find(self, text: str, digest: bytes) -> Literal["duplicate", "near_duplicate"] | None:
        """Which kind of duplicate a text is; one that is none is remembered. `digest` is sha256."""
        if digest in self._digests:
            return "duplicate"
        if self._near is not None and self._near.find(text):
            return "near_duplicate"
        self._digests.add(digest)
        return None


def datasketch_version() -> str:
    """The version that near duplicates are found with, which other versions may find others of."""
    try:
        import datasketch
    except ModuleNotFoundError as error:
        raise MissingExtraError("train") from error
    return str(datasketch.__version__)


def shingles(text: str) -> set[bytes]:
    """The runs of five words in a text, lower-cased; of a shorter one, all of it."""
    words = _WORD.findall(text.lower()) or [text]
    runs = range(max(1, len(words) - _RUN + 1))
    return {" ".join(words[begin : begin + _RUN]).encode() for begin in runs}


class _NearDuplicates:
    def __init__(self, threshold: float, seed: int) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ModuleNotFoundError as error:
            raise MissingExtraError("train") from error
        self._threshold = threshold
        self._empty = MinHash(num_perm=_NUM_HASHES, seed=seed, hashfunc=zlib.crc32)
        self._index = MinHashLSH(num_perm=_NUM_HASHES, params=_choose_bands(threshold))
        self._kept: list[MinHash] = []

    def find(self, text: str) -> bool:
        """Whether a text is nearly one before; else it is remembered."""
        signature = self._empty.copy()
        signature.update_batch(shingles(text))
        if self._is_near(signature, self._index.query(signature)):
            return True
        self._index.insert(len(self._kept), signature)
        self._kept.append(signature)
        return False

    def _is_near(self, signature: "MinHash", candidates: Iterable[int]) -> bool:
        found = (signature.jaccard(self._kept[number]) for number in candidates)
        return any(similarity >= self._threshold for similarity in found)


def _choose_bands(threshold: float) -> tuple[int, int]:
    """Bands and the hashes in each: documents are compared that agree in all hashes of a band."""
    rows = range(_NUM_HASHES // 2, 0, -1)
    choices = ((_NUM_HASHES // count, count) for count in rows)
    return next(
        (bands, count) for bands, count in choices if 1 - (1 - threshold**count) ** bands >= _FOUND
    )
