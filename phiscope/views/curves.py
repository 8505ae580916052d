"""Curves of norms: along the layers of the model, and along the positions of the texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phiscope.activations.points import POINTS, Point

EMBEDDINGS = -1
"""Where a curve by layer has the embeddings: before layer 0."""
_NUM_CURVES = 4
_NUM_BINS = 64


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Mean norms: of one kind of point by layer, or of one column by position."""

    name: str
    places: tuple[float, ...]
    norms: tuple[float, ...]


def trace_layers(norms: Mapping[str, float]) -> list[Curve]:
    """The mean norms of columns, by layer: a curve for each kind of point and reducer.

    Embeddings, `resid_pre.L` and `resid_post.L` are one kind, the residual stream; `resid_pre.L`
    is shown where it lies, after layer L - 1. Fewer than two layers make no curve.
    """
    kinds: dict[str, dict[float, float]] = {}
    for column, norm in norms.items():
        point, reducer = split_column(column)
        layer = None if point is None else _find_layer(point)
        if point is not None and layer is not None:
            kind = "residual stream" if is_stream(point) else point.name
            name = kind if reducer is None else f"{kind}, {reducer}"
            kinds.setdefault(name, {})[layer] = norm
    return [_make_curve(name, places) for name, places in kinds.items() if len(places) > 1]


def trace_positions(
    norms: Mapping[str, NDArray[np.float64]], positions: NDArray[np.int32]
) -> list[Curve]:
    """The mean norms of rows by their position in the text, of a few columns.

    The first position, whose norm is like no other's, has a place of its own; the rest share as
    many as make a line.
    """
    width = max(1, -(-int(positions.max(initial=0)) // (_NUM_BINS - 1)))
    bins = np.where(positions == 0, 0, 1 + (positions - 1) // width)
    _, members, counts = np.unique(bins, return_inverse=True, return_counts=True)
    places = np.bincount(members, weights=positions) / counts
    curves = {
        name: np.bincount(members, weights=norms[name]) / counts for name in _choose(list(norms))
    }
    return [
        _make_curve(name, dict(zip(places.tolist(), curve.tolist(), strict=True)))
        for name, curve in curves.items()
        if len(curve) > 1
    ]


def find_main_column(columns: Sequence[str]) -> str | None:
    """The middle column of the residual stream; without one, the middle column that has a layer."""
    ranked = _find_streams(columns) or [name for name in columns if split_column(name)[0]]
    return ranked[len(ranked) // 2] if ranked else None


def split_column(column: str) -> tuple[Point | None, str | None]:
    """The point, None if there is none of that name, and the reducer of a column."""
    name, *rest = column.split(".")
    if name not in POINTS:
        return None, None
    layered = POINTS[name].in_block
    if layered and not (rest and rest[0].isdigit()):
        return None, None
    point = Point(name, int(rest.pop(0))) if layered else Point(name)
    return point, ".".join(rest) or None


def is_stream(point: Point) -> bool:
    return point.name in ("embeddings", "resid_pre", "resid_post")


def _find_layer(point: Point) -> int | None:
    if point.name == "embeddings":
        return EMBEDDINGS
    if point.layer is None:
        return None
    return point.layer - (point.name == "resid_pre")


def _find_streams(columns: Sequence[str]) -> list[str]:
    """The columns of the residual stream, from the embeddings on."""
    points = {name: split_column(name)[0] for name in columns}
    streams = [(point, name) for name, point in points.items() if point and is_stream(point)]
    return [name for _, name in sorted(streams)]


def _choose(columns: Sequence[str]) -> list[str]:
    """A few columns, of the residual stream if there is any, spread from first to last."""
    names = _find_streams(columns) or list(columns)
    if len(names) <= _NUM_CURVES:
        return names
    last = len(names) - 1
    return [names[round(i * last / (_NUM_CURVES - 1))] for i in range(_NUM_CURVES)]


def _make_curve(name: str, places: Mapping[float, float]) -> Curve:
    ordered = sorted(places.items())
    return Curve(
        name=name,
        places=tuple(place for place, _ in ordered),
        norms=tuple(norm for _, norm in ordered),
    )
