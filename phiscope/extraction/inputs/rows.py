"""One row of the input: a text or token ids, or the fault because of which it has neither."""

import hashlib
from dataclasses import dataclass

import numpy as np

MAX_ROW_BYTES = 64 * 2**20
"""A line, record or file of more bytes is a bad row, so that memory stays bounded."""


class BadRowError(Exception):
    """Why one row cannot be served; it ends as `Row.fault` and never reaches the caller."""

    def __init__(self, fault: str, row_id: str | None = None) -> None:
        super().__init__(fault)
        self.row_id = row_id
        """The row's id, where it is known although the row cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Has exactly one of `text`, `ids` and `fault`."""

    index: int
    """Place in the input, from 0; bad rows count."""
    id: str
    """The id column's value, a file's relative path, or else the index; need not be unique."""
    text: str | None = None
    ids: tuple[int, ...] | None = None
    prompt_chars: int | None = None
    """Characters of the text that are its prompt, where prompt and completion were given."""
    span: tuple[int, int] | None = None
    """Characters [begin, end) of the text."""
    label: str | None = None
    fault: str | None = None

    def __post_init__(self) -> None:
        if [self.text, self.ids, self.fault].count(None) != 2:
            raise ValueError(f"row {self.index} must have one of text, ids and fault")

    @property
    def sha256(self) -> str:
        """Of the text's UTF-8 bytes, or of the ids as little-endian int64; not of a bad row."""
        if self.fault is not None:
            raise ValueError(f"row {self.index} is bad and has no text: {self.fault}")
        if self.text is not None:
            return hashlib.sha256(self.text.encode()).hexdigest()
        return hashlib.sha256(np.array(self.ids, dtype="<i8").tobytes()).hexdigest()
