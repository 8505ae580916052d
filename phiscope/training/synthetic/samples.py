"""Sample, the labels a sample may have, and the templates and kinds that samples are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from phiscope.training.synthetic.draws import Draw

Split = Literal["train", "heldout"]
Labels = Mapping[str, str]
Writer = Callable[[Draw, Labels], str]
"""Writes the text of a sample that has these labels."""


@dataclass(frozen=True)
class Sample:
    """A text and what was planted in it; labels that its kind does not have are absent."""

    id: str
    kind: str
    template: str
    split: Split
    text: str
    labels: Labels


@dataclass(frozen=True)
class Template:
    """A way to write samples of a kind, with words of its own; held out as a whole or not at all.

    A template writes every class of its kind's labels, so no class is without held-out templates.
    """

    name: str
    write: Writer


@dataclass(frozen=True)
class Kind:
    """A kind of text: how its labels are drawn, and its templates."""

    draw_labels: Callable[[Draw, float], dict[str, str]]
    """Takes the strength of the planted correlation, which one kind makes use of."""
    templates: tuple[Template, ...]


def heldout_templates(templates: Sequence[Template], share: float) -> frozenset[str]:
    """Names of the share of templates whose hashes are lowest: at least one, and never all."""
    count = min(max(1, round(share * len(templates))), len(templates) - 1)
    names = sorted((template.name for template in templates), key=_digest)
    return frozenset(names[:count])


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
