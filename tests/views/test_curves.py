import numpy as np
import pytest

from phiscope.activations.points import Point
from phiscope.views.curves import (
    find_main_column,
    split_column,
    trace_layers,
    trace_positions,
)


@pytest.mark.parametrize(
    ("column", "point", "reducer"),
    [
        ("resid_post.16", Point("resid_post", 16), None),
        ("resid_post.16.mean", Point("resid_post", 16), "mean"),
        ("embeddings.weighted_mean", Point("embeddings"), "weighted_mean"),
        ("logits.last.top_values", Point("logits"), "last.top_values"),
        ("my_column.3", None, None),
        ("resid_post.mean", None, None),
    ],
)
def test_a_column_is_a_point_and_a_reducer(column, point, reducer):
    assert split_column(column) == (point, reducer)


def test_the_residual_stream_is_one_curve_by_layer():
    norms = {
        "resid_post.2.mean": 30.0,
        "embeddings.mean": 1.0,
        "resid_pre.1.mean": 10.0,
        "final_norm.mean": 99.0,
        "attn_out.0.mean": 5.0,
        "my_column": 7.0,
    }
    (curve,) = trace_layers(norms)
    assert curve.name == "residual stream, mean"
    assert curve.places == (-1, 0, 2)
    assert curve.norms == (1.0, 10.0, 30.0)


def test_kinds_and_reducers_have_curves_of_their_own():
    norms = {f"{kind}.{layer}.{how}": 1.0 for kind in ("resid_post", "mlp_out")
             for layer in (0, 1) for how in ("mean", "last")}  # fmt: skip
    names = [curve.name for curve in trace_layers(norms)]
    assert names == [
        "residual stream, mean",
        "residual stream, last",
        "mlp_out, mean",
        "mlp_out, last",
    ]


def test_positions_are_averaged_and_the_first_stands_alone():
    positions = np.array([0, 1, 1, 2, 0, 200], dtype=np.int32)
    norms = {"resid_post.1": np.array([10.0, 1.0, 3.0, 5.0, 20.0, 7.0])}
    (curve,) = trace_positions(norms, positions)
    assert curve.places == (0, pytest.approx(4 / 3), 200)
    assert curve.norms == (15.0, 3.0, 7.0)


def test_few_columns_are_traced_by_position_from_first_to_last():
    positions = np.arange(10, dtype=np.int32)
    norms = {f"resid_post.{layer}": np.ones(10) for layer in reversed(range(32))}
    names = [curve.name for curve in trace_positions(norms, positions)]
    assert names == ["resid_post.0", "resid_post.10", "resid_post.21", "resid_post.31"]
    assert trace_positions({"q.0": np.ones(2)}, np.zeros(2, dtype=np.int32)) == []


def test_the_main_column_is_the_middle_of_the_stream():
    assert find_main_column(["q.9", "resid_post.2", "embeddings", "resid_post.1"]) == "resid_post.1"
    assert find_main_column(["x", "q.1", "q.2"]) == "q.2"
    assert find_main_column(["x"]) is None
