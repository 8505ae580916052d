"""Inspection: what one sequence wants read and changed while a forward runs it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from phiscope.activations.edits import Ablate, Add, Edit, Knockout, Replace, Scale
from phiscope.activations.points import Point, PointSpec, resolve_points
from phiscope.config import PhiConfig

_PLAIN = (Add, Replace, Ablate, Scale, Knockout)
"""Edits that are no more than their fields; a function may do something else each time."""


@dataclass(frozen=True)
class Inspection:
    """The points read and the edits made, in the order given, for one sequence."""

    points: tuple[Point, ...] = ()
    edits: tuple[Edit, ...] = ()
    prompt_length: int | None = None
    """Tokens before the completion, for edits of one phase; None: all are prompt."""

    @property
    def fingerprint(self) -> str | None:
        """Equal for equal edits, by their values as they are now; None if nobody can tell."""
        if any(type(edit) not in _PLAIN for edit in self.edits):
            return None
        told = [_describe(edit) for edit in self.edits]
        return hashlib.sha256(b"".join(told)).hexdigest() if told else ""

    @property
    def has_phases(self) -> bool:
        """Whether some edit tells prompt and completion apart."""
        return any(edit.phase != "all" for edit in self.edits)


def make_inspection(
    config: PhiConfig,
    points: PointSpec = (),
    edits: Sequence[Edit] = (),
    *,
    prompt_length: int | None = None,
    loaded_layers: int | None = None,
) -> Inspection:
    """Resolve points and check edits against a model, before anything runs.

    Raises `PointError` for a point that is not there and `ValueError`, naming the point, for an
    edit that does not fit.
    """
    num_layers = config.num_hidden_layers
    resolved = () if _is_empty(points) else resolve_points(points, num_layers, loaded_layers)
    for edit in edits:
        resolve_points(edit.point, num_layers, loaded_layers)
        edit.check(config)
    return Inspection(tuple(resolved), tuple(edits), prompt_length)


def _is_empty(points: PointSpec) -> bool:
    return isinstance(points, Sequence) and not isinstance(points, str) and not points


def _describe(edit: Edit) -> bytes:
    values = [(field.name, getattr(edit, field.name)) for field in fields(edit)]
    words = [f"{name}={_words(value)}" for name, value in values]
    numbers = [_bytes(value) for _, value in values if isinstance(value, Tensor)]
    told = f"{type(edit).__name__}({', '.join(words)})".encode()
    return b"".join([told, *numbers])


def _words(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _bytes(values: Tensor) -> bytes:
    flat = values.detach().cpu().flatten().contiguous()
    return flat.view(torch.uint8).numpy().tobytes()
