"""The bar beside a language model's figure: what `xz -9e` needs for the same held-out text."""

from __future__ import annotations

import lzma
from collections.abc import Iterable

from phiscope.training.bars import shown
from phiscope.training.corpus import Corpus, Document

_PIECE = 10**6
_SMALLEST, _LARGEST = 2**12, 3 * 2**29  # dictionaries that LZMA takes


def xz_bits_per_byte(corpus: Corpus) -> float:
    """Bits per byte of the held-out text for a compressor that has seen the training text.

    It is what the held-out text adds to the compressed training text, with a dictionary as large
    as both together, so that all of the training text can be referred to.
    """
    train, heldout = join_texts(corpus.train), join_texts(corpus.heldout)
    size = len(train) + len(heldout)
    added = _compressed_size(train + heldout, size) - _compressed_size(train, size)
    return 8 * added / len(heldout)


def join_texts(documents: Iterable[Document]) -> bytes:
    """The documents' texts end to end, as UTF-8."""
    return b"".join(document.text.encode() for document in documents)


def _compressed_size(data: bytes, dictionary: int) -> int:
    lzma2 = {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": min(max(dictionary, _SMALLEST), _LARGEST),
    }
    xz = lzma.LZMACompressor(format=lzma.FORMAT_XZ, filters=[lzma2])
    begins = range(0, len(data), _PIECE)
    pieces = (xz.compress(data[begin : begin + _PIECE]) for begin in shown(begins, "xz, megabytes"))
    return sum(map(len, pieces)) + len(xz.flush())
