"""The picture of a store: a PNG with the norms by layer and by position, and the projection."""

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from phiscope.errors import MissingExtraError, StoreError
from phiscope.store.disk import Disk
from phiscope.store.tensor_file import write_whole
from phiscope.views.curves import EMBEDDINGS, Curve
from phiscope.views.projection import Projection
from phiscope.views.view import StoreView

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of Okabe and Ito (2008), told apart by the colour-blind."""
_GREY = "#999999"
_PANEL_SIZE = (5.0, 4.0)
"""Inches."""
_DOTS_PER_INCH = 150
_MOST_TICKS = 10
_STEEP = 30
"""From this ratio of the largest to the smallest norm on, the scale is logarithmic."""


def draw_png(view: StoreView, out: Path, disk: Disk | None = None) -> None:
    """Draw what the view has of: norms by layer, norms by position, projection.

    Raises `StoreError` for a view with none of them, and `MissingExtraError` without matplotlib.
    """
    panels = _choose_panels(view)
    if not panels:
        raise StoreError(f"{view.name} has too few rows and layers for a picture")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("plot") from error
    width, height = _PANEL_SIZE
    figure = Figure(figsize=(width * len(panels), height), layout="constrained")
    figure.suptitle(f"{view.name}: {view.sampling}", fontsize=10, color="0.3", parse_math=False)
    for draw, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        draw(axes)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    with write_whole(out, disk) as write:
        write(data.getvalue())


def find_classes(labels: Sequence[str | None], most: int) -> tuple[list[str], list[str | None]]:
    """The commonest classes, at most `most`, and each row's class, None for all others."""
    counts = Counter(name for name in labels if name is not None)
    classes = [name for name, _ in counts.most_common(most)]
    return classes, [name if name in classes else None for name in labels]


def is_steep(curves: Sequence[Curve]) -> bool:
    """Whether the norms need a logarithmic scale."""
    norms = [norm for curve in curves for norm in curve.norms]
    return 0 < min(norms) * _STEEP < max(norms)


def _choose_panels(view: StoreView) -> list[Callable[["Axes"], None]]:
    panels: list[Callable[[Axes], None]] = []
    if view.by_layer:
        panels.append(lambda axes: _draw_layers(axes, view.by_layer))
    if view.by_position:
        panels.append(lambda axes: _draw_positions(axes, view.by_position))
    projection = view.projection
    if projection is not None:
        panels.append(lambda axes: _draw_projection(axes, projection))
    return panels


def _draw_layers(axes: "Axes", curves: Sequence[Curve]) -> None:
    _draw_curves(axes, curves, "Norm by layer", marker="o")
    places = [int(place) for curve in curves for place in curve.places]
    step = 1 << (max(places) // _MOST_TICKS).bit_length()
    ticks = list(range(0, max(places) + 1, step))
    if EMBEDDINGS in places:
        ticks = [EMBEDDINGS, *ticks[step > 1 :]]  # 0 would lie over it
    axes.set_xticks(ticks, ["emb" if tick == EMBEDDINGS else str(tick) for tick in ticks])
    axes.set_xlabel("layer (emb: the embeddings)" if EMBEDDINGS in places else "layer")


def _draw_positions(axes: "Axes", curves: Sequence[Curve]) -> None:
    _draw_curves(axes, curves, "Norm by position", marker=".")
    axes.set_xlabel("position in the text (tokens)")


def _draw_curves(axes: "Axes", curves: Sequence[Curve], title: str, marker: str) -> None:
    alone = f"\n{curves[0].name}" if len(curves) == 1 else ""
    axes.set_title(title + alone, fontsize=10)
    lines: dict[str, Artist] = {}
    for number, curve in enumerate(curves):
        (line,) = axes.plot(curve.places, curve.norms, marker, markersize=4)
        line.set(color=_COLORS[number % len(_COLORS)], linestyle="-", linewidth=1.2)
        lines[curve.name] = line
    axes.set_ylabel("mean L2 norm of a row")
    if is_steep(curves):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    _finish(axes, lines)


def _draw_projection(axes: "Axes", projection: Projection) -> None:
    classes, named = find_classes(projection.all_labels, len(_COLORS))
    order: list[str | None] = [*classes, *([None] if None in named else [])]
    dots: dict[str, Artist] = {}
    for name in order:
        x, y = projection.coordinates[np.array([each == name for each in named])].T
        color = _GREY if name is None and classes else _COLORS[order.index(name) % len(_COLORS)]
        dots[name or "other"] = axes.scatter(x, y, s=9, alpha=0.6, linewidths=0, color=color)
    title = f"PCA of {projection.column}\n{projection.sampling}"
    axes.set_title(title, fontsize=10, parse_math=False)
    first, second = (f"{100 * share:.1f} % of variance" for share in projection.shares)
    axes.set_xlabel(f"PC 1 ({first})")
    axes.set_ylabel(f"PC 2 ({second})")
    _finish(axes, dots)


def _finish(axes: "Axes", drawn: Mapping[str, "Artist"]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    if len(drawn) > 1:
        legend = axes.legend(list(drawn.values()), list(drawn), fontsize=8, edgecolor="none")
        for text in legend.get_texts():
            text.set_parse_math(False)
