import pytest
import torch

from phiscope.activations.points import (
    POINTS,
    Point,
    resolve_points,
    row_shape,
    transformers_state,
)
from phiscope.config import PRESETS
from phiscope.errors import PointError

EVERY_POINT = [Point(kind.name, 0 if kind.in_block else None) for kind in POINTS.values()]


def names(spec, num_layers=32, loaded_layers=None):
    return [str(point) for point in resolve_points(spec, num_layers, loaded_layers)]


@pytest.mark.parametrize("point", EVERY_POINT, ids=str)
def test_a_point_reads_back_from_its_own_name(point):
    assert resolve_points(str(point), 1) == [point]


@pytest.mark.parametrize("kind", POINTS.values(), ids=lambda kind: kind.name)
def test_each_transformerlens_name_is_a_point(kind):
    for hook in kind.hooks:
        spec = f"blocks.5.{hook}" if kind.in_block else hook
        assert resolve_points(spec, 32) == [Point(kind.name, 5 if kind.in_block else None)]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("resid_post.16", ["resid_post.16"]),
        ("resid_post.[16]", ["resid_post.16"]),
        ("resid_post.-1", ["resid_post.31"]),
        ("resid_post.[8:24:4]", [f"resid_post.{i}" for i in (8, 12, 16, 20)]),
        ("resid_post.[::16]", ["resid_post.0", "resid_post.16"]),
        ("resid_post.[-2:]", ["resid_post.30", "resid_post.31"]),
        ("q.[3, -1]", ["q.3", "q.31"]),
        ("q.3, k.3,z.[1,2]", ["q.3", "k.3", "z.1", "z.2"]),
        (["logits", Point("v", 2), "logits"], ["logits", "v.2"]),
        ("blocks.16.hook_resid_post", ["resid_post.16"]),
        ("blocks.[:2].attn.hook_pattern", ["attn_probs.0", "attn_probs.1"]),
        ("hidden_states[0]", ["embeddings"]),
        ("hidden_states[17]", ["resid_post.16"]),
        ("hidden_states[32]", ["final_norm"]),
        ("hidden_states[-1]", ["final_norm"]),
        ("hidden_states[31:]", ["resid_post.30", "final_norm"]),
        ("attentions[3]", ["attn_probs.3"]),
    ],
)
def test_a_spec_names_these_points(spec, expected):
    assert names(spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resid_post.32", r"indices are 0 to 31"),
        ("resid_post.-33", r"-32 to -1"),
        ("resid_post.[8:40]", r"40 is outside 0 to 31"),
        ("resid_post.[8:8]", r"the range is empty"),
        ("resid_post.[8:4:-1]", r"step of a range must be at least 1"),
        ("resid_post.[a:b]", r"written \[start:stop:step\]"),
        ("resid_post.[1,x]", r"'x' is not an integer"),
        ("resid_post.[]", r"'' is not an integer"),
        ("resid_post", r"needs a layer, such as resid_post.0"),
        ("logits.3", r"logits has no layer"),
        ("hidden_states[33]", r"indices are 0 to 32"),
        ("resid_mid.4", r"blocks are parallel"),
        ("blocks.4.hook_resid_mid", r"blocks are parallel"),
        ("blocks.4.attn.hook_result", r"take z"),
        ("resid_pots.3", r"did you mean resid_post"),
        ("blocks.3.attn.hook_patern", r"did you mean attn.hook_pattern"),
        ("blocks.3.hook_embed", r"no point"),
        ("zzzzzz", r"choose from embeddings"),
        ("resid_post." + "9" * 5000, r"no point"),
        ("", r"no point"),
        ([], r"no points were named"),
        (Point("q", 40), r"layers 0 to 31"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_point_that_does_not_exist_is_refused_with_the_remedy(spec, message):
    with pytest.raises(PointError, match=message):
        resolve_points(spec, 32)


def test_a_point_above_the_loaded_blocks_is_refused():
    assert names(["resid_post.16", "resid_pre.17"], loaded_layers=17)
    with pytest.raises(PointError, match=r"above the 17 blocks.*layers=18 or more"):
        resolve_points("q.17", 32, 17)
    with pytest.raises(PointError, match=r"load it without layers="):
        resolve_points("final_norm", 32, 17)


def test_points_sort_in_the_order_a_forward_computes_them():
    points = resolve_points(["logits", "q.1", "resid_post.0", "final_norm", "embeddings"], 2)
    assert [str(point) for point in sorted(points)] == [
        "embeddings",
        "resid_post.0",
        "q.1",
        "final_norm",
        "logits",
    ]


@pytest.mark.parametrize(
    ("spec", "depth"),
    [
        ("embeddings", 0),
        ("resid_pre.0", 0),
        ("resid_pre.16", 16),
        ("resid_post.16", 17),
        ("q.16", 17),
        ("final_norm", None),
        ("logits", None),
    ],
)
def test_a_point_says_how_many_blocks_it_needs(spec, depth):
    assert resolve_points(spec, 32)[0].depth == depth


def test_transformers_index_beyond_its_tuple_is_refused():
    with pytest.raises(PointError, match=r"hidden_states\[0\] to \[32\], got 33"):
        transformers_state(33, 32)


@pytest.mark.parametrize("bad", [("nothing", 1), ("q", None), ("q", -1), ("logits", 0)])
def test_a_point_is_checked_when_it_is_made(bad):
    with pytest.raises(PointError):
        Point(*bad)


def test_a_thing_that_is_no_name_is_refused():
    with pytest.raises(TypeError, match="a point is a string or a Point, got int"):
        resolve_points([3], 32)


def test_row_shapes_of_phi_2():
    config = PRESETS["phi-2"]
    shapes = {point.name: row_shape(point, config) for point in EVERY_POINT}
    assert shapes["resid_post"] == torch.Size([2560])
    assert shapes["z"] == (32, 80)
    assert shapes["mlp_act"] == (10240,)
    assert shapes["logits"] == (51200,)
    assert shapes["attn_probs"] is None
