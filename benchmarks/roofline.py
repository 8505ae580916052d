"""Draw a result of speed.py as a roofline: operations per second over operations per byte.

Under the slope a run waits for memory, under a flat roof for the arithmetic of that dtype. Roofs
are the medians of what was measured; every setting has a point for each cell, ours are filled.

    python benchmarks/roofline.py benchmarks/results/speed_4_threads.json docs/speed_4_threads.svg
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

OURS = "phiscope"
MARKERS = {"prefill": "s", "decode_1": "o", "decode_8": "^"}
COLORS = {32: "tab:blue", 16: "tab:green", 8: "tab:orange", 4: "tab:red"}
"""By bits of a weight."""
FEWEST, MOST = 0.3, 3000
"""Operations per byte, the ends of the axis."""


class Point(NamedTuple):
    cell: str
    name: str
    bits: int
    intensity: float
    """Operations per byte."""
    gflops: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path, help="a .png or .svg")
    options = parser.parse_args()
    figures = json.loads(options.results.read_text())
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    draw_roofs(axes, figures["limits"])
    draw_points(axes, list_points(figures["cells"]))
    add_words(axes, figures)
    figure.savefig(options.out, dpi=150, metadata={"Date": None} if is_svg(options.out) else None)


def is_svg(path: Path) -> bool:
    """Such a file would hold the time of day, and change whenever it is drawn."""
    return path.suffix == ".svg"


def list_points(cells: dict[str, Any]) -> list[Point]:
    return [
        Point(
            cell=cell,
            name=name,
            bits=row["bits"],
            intensity=row["flops"] / row["bytes"],
            gflops=row["flops"] / row["median_seconds"] / 1e9,
        )
        for cell, rows in cells.items()
        for name, row in rows.items()
    ]


def find_roofs(limits: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """GB/s of memory, and GFLOP/s by dtype."""
    peaks = {dtype: median(values) for dtype, values in limits["peak_gflops"].items()}
    return median(limits["bandwidth_gb"]), peaks


def draw_roofs(axes: Axes, limits: dict[str, Any]) -> None:
    bandwidth, peaks = find_roofs(limits)
    x = np.geomspace(FEWEST, MOST, 200)
    top = max(peaks.values())
    axes.plot(x, np.minimum(x * bandwidth, top), color="black", linewidth=1)
    axes.annotate(f"{bandwidth:.0f} GB/s", (0.5, 0.5 * bandwidth * 1.15), rotation=35)
    for dtype, peak in peaks.items():
        axes.plot([peak / bandwidth, MOST], [peak, peak], color="gray", linewidth=1)
        axes.annotate(f"{dtype} {peak:.0f} GFLOP/s", (MOST, peak * 1.04), ha="right")


def draw_points(axes: Axes, points: list[Point]) -> None:
    for point in points:
        color = COLORS[point.bits]
        axes.plot(
            point.intensity,
            point.gflops,
            marker=MARKERS[point.cell],
            color=color,
            markerfacecolor=color if point.name.startswith(OURS) else "none",
            linestyle="none",
            markersize=9 if point.name.startswith(OURS) else 7,
        )


def add_words(axes: Axes, figures: dict[str, Any]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte read")
    axes.set_ylabel("GFLOP/s")
    cpu = figures["machine"]["cpu"]
    axes.set_title(f"Phi-2 on {cpu}, {figures['num_threads']} threads; filled: {OURS}")
    signs = [
        *(Line2D([], [], color="black", marker=m, ls="none", label=c) for c, m in MARKERS.items()),
        *(
            Line2D([], [], color=c, marker="o", ls="none", label=f"{b} bit")
            for b, c in COLORS.items()
        ),
    ]
    axes.legend(handles=signs, loc="lower right")


if __name__ == "__main__":
    main()
