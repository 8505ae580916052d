"""The picture of a store for a terminal: bars for norms and a grid for the projection, in ASCII."""

from collections.abc import Sequence
from math import log

import numpy as np

from phiscope.views.curves import EMBEDDINGS, Curve
from phiscope.views.picture import find_classes, is_steep
from phiscope.views.projection import Projection
from phiscope.views.view import StoreView, show_number

LEAST_WIDTH = 40
_MOST_HEIGHT = 24
_MOST_BARS = 20
_SHADES = ".:*#"
"""One row in a cell, then up to 3, 9, and more."""
_LETTERS = "abcdefghij"


def draw_text(view: StoreView, width: int = 80) -> list[str]:
    """Lines of at most `width` characters, 40 at least: what `draw_png` draws.

    Of the norms by position only those of the middle column.
    """
    width = max(width, LEAST_WIDTH)
    lines = _cut([f"{view.name}: {view.sampling}"], width)
    for curve in view.by_layer:
        lines += ["", *_draw_bars(curve, f"mean L2 norm by layer: {curve.name}", "layer", width)]
    for curve in view.by_position[len(view.by_position) // 2 :][:1]:
        title = f"mean L2 norm by position: {curve.name}"
        lines += ["", *_draw_bars(_thin(curve), title, "position", width)]
    if view.projection is not None:
        lines += ["", *_draw_grid(view.projection, width)]
    return lines


def _draw_bars(curve: Curve, title: str, unit: str, width: int) -> list[str]:
    steep = is_steep([curve])
    names = [_name_place(place, unit) for place in curve.places]
    values = [show_number(norm) for norm in curve.norms]
    left, right = max(map(len, names)), max(map(len, values))
    room = width - left - right - 4
    lengths = _scale(curve.norms, room, steep)
    bars = [
        f"{name:>{left}} |{'#' * length:<{room}} {value:>{right}}"
        for name, length, value in zip(names, lengths, values, strict=True)
    ]
    return [*_cut([title + (" (bars: log scale)" if steep else "")], width), *bars]


def _scale(norms: Sequence[float], room: int, steep: bool) -> list[int]:
    """The length of each bar; on a log scale the smallest has 1."""
    most = max(norms)
    if steep:
        least = min(norms)
        shares = [log(norm / least) / log(most / least) for norm in norms]
        return [1 + round(share * (room - 1)) for share in shares]
    return [round(norm / most * room) if most > 0 else 0 for norm in norms]


def _name_place(place: float, unit: str) -> str:
    if unit == "layer":
        return "emb" if place == EMBEDDINGS else f"{place:.0f}"
    return f"{place:.0f}"


def _thin(curve: Curve) -> Curve:
    """A curve of few enough places for a bar each: the first, and the rest evenly spread."""
    count = len(curve.places)
    if count <= _MOST_BARS:
        return curve
    chosen = [round(i * (count - 1) / (_MOST_BARS - 1)) for i in range(_MOST_BARS)]
    return Curve(
        name=curve.name,
        places=tuple(curve.places[i] for i in chosen),
        norms=tuple(curve.norms[i] for i in chosen),
    )


def _draw_grid(projection: Projection, width: int) -> list[str]:
    columns, lines = width - 2, min(_MOST_HEIGHT, max(10, width // 4))
    classes, named = find_classes(projection.all_labels, len(_LETTERS))
    cells = _place(projection, named, columns, lines)
    rows = ["".join(_mark(members, classes) for members in line) for line in cells]
    border = "+" + "-" * columns + "+"
    first, second = (f"{100 * share:.1f}%" for share in projection.shares)
    legend = [f"{_LETTERS[i]} = {name}" for i, name in enumerate(classes)]
    legend += [". = other"] if None in named else []
    notes = [
        f"PCA of {projection.column}",
        projection.sampling,
        f"right: PC 1, {first} of variance; up: PC 2, {second}",
        ", ".join(legend) if classes else "rows in a cell: . 1  : 2-3  * 4-9  # 10-",
    ]
    return [*_cut(notes, width), border, *(f"|{row}|" for row in rows), border]


def _place(
    projection: Projection, named: Sequence[str | None], columns: int, lines: int
) -> list[list[list[str | None]]]:
    """The classes of the rows in each cell of the grid, from the top line down."""
    points = projection.coordinates
    low, high = points.min(axis=0), points.max(axis=0)
    spread = np.where(high > low, high - low, 1.0)
    places = ((points - low) / spread * (np.array([columns, lines]) - 1)).round().astype(int)
    cells: list[list[list[str | None]]] = [[[] for _ in range(columns)] for _ in range(lines)]
    for name, (x, y) in zip(named, places.tolist(), strict=True):
        cells[lines - 1 - y][x].append(name)
    return cells


def _mark(members: Sequence[str | None], classes: Sequence[str]) -> str:
    """A character for the rows in a cell: how many, or the letter of their commonest class."""
    if not members:
        return " "
    if not classes:
        return _SHADES[sum(len(members) > border for border in (1, 3, 9))]
    counts = [members.count(name) for name in classes]
    return _LETTERS[counts.index(max(counts))] if any(counts) else "."


def _cut(lines: Sequence[str], width: int) -> list[str]:
    """Lines no longer than the width, in ASCII."""
    plain = [line.encode("ascii", "backslashreplace").decode() for line in lines]
    return [line if len(line) <= width else line[: width - 3] + "..." for line in plain]
