"""Inspection: what one sequence wants read and changed while a forward runs it."""

from collections.abc import Sequence
from dataclasses import dataclass

from phiscope.activations.edits import Edit
from phiscope.activations.points import Point, PointSpec, resolve_points
from phiscope.config import PhiConfig


@dataclass(frozen=True)
class Inspection:
    """The points read and the edits made, in the order given, for one sequence."""

    points: tuple[Point, ...] = ()
    edits: tuple[Edit, ...] = ()
    prompt_length: int | None = None
    """Tokens before the completion, for edits of one phase; None: all are prompt."""


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
