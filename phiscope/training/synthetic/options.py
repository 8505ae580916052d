"""What generated data is told: the mix of kinds, the planted correlation, what is held out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from phiscope.training.synthetic.kinds import KINDS
from phiscope.training.synthetic.samples import Split

Splits = Literal[Split, "both"]
SPLITS: tuple[str, ...] = ("train", "heldout", "both")
DEFAULT_MIX: Mapping[str, float] = {
    "story": 4, "fact": 2, "occupation": 2, "qa": 1, "chat": 1, "code": 2, "junk": 4,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SyntheticOptions:
    """Sample i depends on these and on i, and on nothing else.

    Raises `ValueError`, with the name of the field, for what cannot be.
    """

    seed: int = 0
    mix: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))
    """Weights of kinds; those that are not named are left out. That of `junk` is what there is of
    the class junk of label `quality`."""
    strength: float = 0.6
    """The correlation of gender with the group of an occupation, from -1 to 1."""
    heldout_share: float = 0.2
    """Share of each kind's templates that is held out: at least one, and not all."""
    split: Splits = "both"
    """Templates to write with; of `both`, about the held-out share of samples is held out."""

    def __post_init__(self) -> None:
        _check_mix(self.mix)
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if not -1 <= self.strength <= 1:
            raise ValueError(f"strength must lie from -1 to 1, got {self.strength}")
        if not 0 < self.heldout_share < 1:
            raise ValueError(f"heldout_share must lie between 0 and 1, got {self.heldout_share}")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")


def _check_mix(mix: Mapping[str, float]) -> None:
    for kind, weight in mix.items():
        if kind not in KINDS:
            raise ValueError(f"mix has no kind {kind!r}; choose from {sorted(KINDS)}")
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"mix of {kind!r} must be a number from 0, got {weight}")
    if not any(mix.values()):
        raise ValueError("mix is empty; give at least one kind a weight above 0")
