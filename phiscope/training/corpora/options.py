"""What is kept of an input, and how it is laid out: all that a corpus depends on beside its text.

Options are in the manifest of the corpus, and another build of the folder must have the same.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

NulTreatment = Literal["drop", "replace"]
NUL_TREATMENTS: tuple[str, ...] = get_args(NulTreatment)


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """Raises `ValueError` for values that cannot be."""

    min_bytes: int = 1
    """Documents of fewer bytes, in UTF-8, are dropped."""
    nfc: bool = False
    """Normalize the text to Unicode's NFC."""
    nul: NulTreatment = "drop"
    """Drop a document with a NUL, or put U+FFFD in its place."""
    near_duplicates: float | None = 0.8
    """Drop a document that shares this much of its word shingles with one before; None: keep it."""
    heldout_share: float = 0.0
    """The share of documents, drawn by the hash of their text, that is never trained on."""
    shard_tokens: int = 2**24
    """A shard ends with the document that gives it so many tokens."""
    seed: int = 1
    """Of the hash functions that near duplicates are found with."""

    def __post_init__(self) -> None:
        if self.min_bytes < 1 or self.shard_tokens < 1:
            raise ValueError(
                "min_bytes and shard_tokens must be at least 1,"
                f" got {self.min_bytes} and {self.shard_tokens}"
            )
        if self.nul not in NUL_TREATMENTS:
            raise ValueError(f"no treatment of NUL {self.nul!r}; choose from {NUL_TREATMENTS}")
        if self.near_duplicates is not None and not 0.1 <= self.near_duplicates <= 1:
            raise ValueError(
                "near_duplicates is a similarity from 0.1 to 1, or None,"
                f" got {self.near_duplicates}"
            )
        if not 0 <= self.heldout_share < 1:
            raise ValueError(f"heldout_share must be from 0 to below 1, got {self.heldout_share}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to below 2**32, got {self.seed}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
