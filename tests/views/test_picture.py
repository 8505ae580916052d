import sys

import numpy as np
import pytest

from phiscope.errors import MissingExtraError, StoreError
from phiscope.views.curves import Curve
from phiscope.views.picture import draw_png, find_classes, is_steep
from phiscope.views.projection import Projection
from phiscope.views.text_picture import draw_text
from phiscope.views.view import StoreView

LAYERS = Curve(name="residual stream", places=(-1, 0, 1, 2), norms=(1.0, 2.0, 3.0, 4.0))
POSITIONS = Curve(
    name="resid_post.1", places=tuple(range(60)), norms=(500.0, *np.linspace(5, 9, 59).tolist())
)


def make_view(*, layers=(LAYERS,), positions=(), labels=(), projected=True):
    points = np.array([[0.0, 0.0], [0.0, 0.0], [10.0, 0.0], [10.0, 4.0], [5.0, 2.0]])
    projection = Projection(
        column="resid_post.1", coordinates=points, shares=(0.8, 0.2), sampling="5 texts",
        labels=labels,
    )  # fmt: skip
    return StoreView(
        name="states $1_$", level="texts", num_rows=5, num_sampled=5, columns=(),
        by_layer=layers, by_position=positions, projection=projection if projected else None,
    )  # fmt: skip


def read_size(path):
    """Width and height in the header of a PNG file."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_each_thing_there_is_has_a_panel(tmp_path):
    pytest.importorskip("matplotlib")
    labels = ("__label__$a", "b", None, "b", "b")
    draw_png(make_view(positions=(POSITIONS,), labels=labels), tmp_path / "three.png")
    draw_png(make_view(projected=False), tmp_path / "one.png")
    three, one = read_size(tmp_path / "three.png"), read_size(tmp_path / "one.png")
    assert three == (3 * one[0], one[1])


def test_the_same_view_gives_the_same_bytes(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a.png", "b.png"):
        draw_png(make_view(projected=False), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_view_of_nothing_is_no_picture(tmp_path):
    with pytest.raises(StoreError, match="too few rows and layers for a picture"):
        draw_png(make_view(layers=(), projected=False), tmp_path / "none.png")
    assert not list(tmp_path.iterdir())


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'phiscope\[plot\]'"):
        draw_png(make_view(), tmp_path / "none.png")


def test_bars_are_as_long_as_norms():
    lines = draw_text(make_view(projected=False), width=40)
    assert lines[0] == "states $1_$: all 5 texts"
    bars = {line.split(" |")[0].strip(): line.count("#") for line in lines if " |" in line}
    assert list(bars) == ["emb", "0", "1", "2"]
    assert bars["2"] == 4 * bars["emb"] == 2 * bars["0"]
    assert lines[-1].endswith(" 4.000")


def test_steep_norms_have_a_scale_that_says_so():
    assert is_steep([POSITIONS])
    assert not is_steep([LAYERS])
    lines = draw_text(make_view(layers=(), positions=(POSITIONS,), projected=False))
    assert lines[2].endswith("(bars: log scale)")
    bars = [line.count("#") for line in lines if " |" in line]
    assert len(bars) == 20
    assert bars[0] == max(bars)
    assert min(bars) == 1


def test_a_grid_has_rows_where_they_are():
    lines = draw_text(make_view(layers=()), width=40)
    border = "+" + "-" * 38 + "+"
    begin = lines.index(border)
    grid = lines[begin + 1 : lines.index(border, begin + 1)]
    assert grid[-1] == "|:" + " " * 36 + ".|"
    assert grid[0] == "|" + " " * 37 + ".|"
    assert sum(line.count(".") + line.count(":") for line in grid) == 4


def test_classes_are_letters_in_the_grid():
    lines = draw_text(make_view(layers=(), labels=("x", "x", "\u00fc", None, "x")), width=40)
    assert r"a = x, b = \xfc, . = other" in lines
    grid = [line for line in lines if line.startswith("|")]
    assert grid[-1] == "|a" + " " * 36 + "b|"
    assert grid[0].endswith(".|")
    lines = draw_text(make_view(layers=(), labels=("x",) * 5))
    assert "a = x" in lines


@pytest.mark.parametrize("width", [10, 40, 61, 200])
def test_no_line_is_wider_than_the_terminal(width):
    view = make_view(positions=(POSITIONS,), labels=("a" * 100,) * 5)
    lines = draw_text(view, width)
    assert max(map(len, lines)) <= max(width, 40)
    assert all(line.isascii() for line in lines)


def test_the_commonest_classes_are_kept():
    labels = ["a", "b", "b", None, "c", "c", "c"]
    assert find_classes(labels, 2) == (["c", "b"], [None, "b", "b", None, "c", "c", "c"])
