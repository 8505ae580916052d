"""docs/points.md says what the code does: its examples run, and its table is the code's."""

import dataclasses
import re
from pathlib import Path

import pytest
from oracle import make_model

from phiscope.activations.points import POINTS, resolve_points
from phiscope.api import Phi
from phiscope.runtime import MODES
from phiscope.tokenizer import tokenizer_from_merges

PAGE = Path(__file__).resolve().parents[2] / "docs" / "points.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text("utf-8").splitlines()
    if line.startswith("| `") and line.count("|") == 6
]
SHAPES = {
    "heads": "(T, heads, head_dim)",
    "kv_heads": "(T, kv_heads, head_dim)",
    "map": "(heads, T, K)",
    "head": "(T, heads)",
}


@pytest.fixture(scope="module")
def phi(model):
    """32 small blocks and a tokenizer of bytes."""
    mode = MODES["fp32-cpu"]
    config = dataclasses.replace(model.config, vocab_size=320, num_hidden_layers=32)
    small = make_model(config, dtype=mode.dtype)
    return Phi(small, tokenizer_from_merges([]), mode)


def test_the_examples_run_in_their_order(phi):
    names = {"phi": phi}
    assert len(EXAMPLES) >= 6
    for example in EXAMPLES:
        exec(example, names)


def test_the_table_has_every_point_and_its_meaning():
    assert [_name(row[0]) for row in ROWS] == list(POINTS)
    for row in ROWS:
        kind = POINTS[_name(row[0])]
        assert ("`" + kind.name + (".i`" if kind.in_block else "`")) == row[0]
        assert row[2] == kind.meaning
        assert row[1].startswith(SHAPES.get(kind.shape, f"(T, {kind.shape})"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_other_names_in_the_table_are_understood(row):
    others = re.findall(r"`([^`]+)`", row[3] + row[4])
    for other in others:
        spec = re.sub(r"\bi( \+ 1)?\b", lambda m: str(3 + bool(m[1])), other).replace("[L]", "[32]")
        place = resolve_points(row[0].strip("`").replace(".i", ".3"), 32)[0].place
        assert [point.place for point in resolve_points(spec, 32)] == [place]
    assert sum("hook" in other for other in others) == len(POINTS[_name(row[0])].hooks)


def _name(cell):
    return cell.strip("`").removesuffix(".i")
