"""What a finished run has to say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phiscope.training.heldout import Figure


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """Figures of a run."""

    name: str
    folder: Path
    num_parameters: int
    steps: int
    seconds: float
    tokens: int
    """Tokens trained on, over all epochs."""
    train_bytes: int
    train_tokens: int
    heldout_bytes: int
    num_documents: tuple[int, int]
    """Training and held-out documents."""
    corpus_digest: str
    loss: float | None
    """Moving average of the training loss, in nats per token."""
    heldout: Figure
    """Of all held-out text, each token with at least half a window before it."""
    heldout_blind: Figure
    """Of all held-out text, in windows that begin blind."""
    xz_bits_per_byte: float
    """Of the same text for `xz -9e` that has the training text as its dictionary."""
    precision: str

    @property
    def bits_per_byte(self) -> float:
        return self.heldout.bits_per_byte

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON holds them."""
        figures = {name: value for name, value in vars(self).items() if name not in _OWN}
        return {
            **figures,
            "folder": str(self.folder),
            "heldout_bits_per_byte": round(self.heldout.bits_per_byte, 4),
            "heldout_bits_per_byte_blind": round(self.heldout_blind.bits_per_byte, 4),
            "heldout_loss": round(self.heldout.loss, 4),
        }


_OWN = ("folder", "heldout", "heldout_blind")
