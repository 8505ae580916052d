"""Documents: what is kept of an input's rows, and why the rest is not.

Rows are chained by hash: a document carries the hash of all the input up to it, by which a resumed
build knows that it reads what the one before had read.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from phiscope.errors import InputError
from phiscope.extraction.inputs import Row, Source
from phiscope.training.corpora.cleaning import NUL, clean, find_fault
from phiscope.training.corpora.duplicates import Duplicates
from phiscope.training.corpora.options import CorpusOptions

DROPS = (
    "empty",
    "surrogate",
    "unreadable",
    "nul",
    "short",
    "duplicate",
    "near_duplicate",
)
"""Why rows are dropped: no text, half a surrogate pair, other bad rows, and what cleaning finds."""
_SURROGATE = "a lone surrogate"
_MAX_NAMED = 5


@dataclass(frozen=True)
class Document:
    """A text that is kept."""

    text: str
    digest: bytes
    """Its sha256."""
    num_rows: int
    """Rows of the input up to this document and with it."""
    input_sha256: str
    """Of these rows."""

    def is_heldout(self, share: float) -> bool:
        """Whether its hash is among the lowest `share` of all hashes."""
        return int.from_bytes(self.digest[:8], "big") < share * 2**64


class InputDigest:
    """The hash of rows so far; a bad row counts as bad, whatever is wrong with it."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._chain = b""

    def add(self, row: Row) -> None:
        data = b"\0" if row.text is None else b"\1" + row.text.encode()
        self._chain = hashlib.sha256(self._chain + data).digest()
        self.num_rows += 1

    @property
    def sha256(self) -> str:
        return self._chain.hex()


class DocumentReader:
    """Reads the documents of a source, once; what was counted is whole when it ends.

    Raises `InputError` for a source of token ids.
    """

    def __init__(self, source: Source, options: CorpusOptions) -> None:
        check_texts(source)
        self.digest = InputDigest()
        self.drops = dict.fromkeys(DROPS, 0)
        self.num_replaced = 0
        """NULs that were replaced."""
        self.faults: list[str] = []
        """The first bad rows, in words."""
        self._source = source
        self._options = options
        self._duplicates = Duplicates(options)

    def __iter__(self) -> Iterator[Document]:
        for row in self._source.rows():
            self.digest.add(row)
            document = self._read(row)
            if document is not None:
                yield document

    def _read(self, row: Row) -> Document | None:
        if row.text is None:
            self._drop_bad_row(row)
            return None
        text = clean(row.text, self._options)
        digest = hashlib.sha256(text.encode()).digest()
        reason = find_fault(text, self._options) or self._duplicates.find(text, digest)
        if reason is not None:
            self.drops[reason] += 1
            return None
        if NUL in row.text:
            self.num_replaced += row.text.count(NUL)
        return Document(text, digest, self.digest.num_rows, self.digest.sha256)

    def _drop_bad_row(self, row: Row) -> None:
        fault = row.fault or "token ids, and no text"
        if fault == "empty":
            self.drops["empty"] += 1
            return
        self.drops["surrogate" if fault.startswith(_SURROGATE) else "unreadable"] += 1
        if len(self.faults) < _MAX_NAMED:
            self.faults.append(f"row {row.index}: {fault}")


def digest_input(source: Source) -> InputDigest:
    """The hash of all rows of a source."""
    digest = InputDigest()
    for row in source.rows():
        digest.add(row)
    return digest


def check_texts(source: Source) -> None:
    """Raise `InputError` for a source of token ids."""
    if source.spec.get("ids") is not None:
        raise InputError(
            f"{source.name} gives token ids, and a corpus is made of texts; name their column"
        )
