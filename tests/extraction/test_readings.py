import pytest
from plain_extraction import CONFIG

from phiscope.errors import PointError
from phiscope.extraction.options import make_options
from phiscope.extraction.readings import find_depth, make_readings, make_schema


def read(points, loaded=None, **settings):
    return make_readings(make_options(points=points, **settings), CONFIG, loaded)


def columns(points, **settings):
    schema = make_schema(read(points, **settings))
    return [(column.name, column.dtype, column.shape) for column in schema.columns]


def test_each_point_is_a_column_with_the_shape_of_its_rows():
    assert columns("z.0, k.2, mlp_act.1, resid_post.-1, attn_entropy.1", dtype="float32") == [
        ("z.0", "float32", (4, 8)),
        ("k.2", "float32", (2, 8)),
        ("mlp_act.1", "float32", (48,)),
        ("resid_post.2", "float32", (32,)),
        ("attn_entropy.1", "float32", (4,)),
    ]


def test_each_point_has_a_column_for_each_reducer_in_the_order_given():
    named = columns("resid_post.1, embeddings", pool=("max", "mean"), dtype="bfloat16")
    assert [name for name, _, _ in named] == [
        "resid_post.1.max",
        "resid_post.1.mean",
        "embeddings.max",
        "embeddings.mean",
    ]
    assert {dtype for _, dtype, _ in named} == {"bfloat16"}


def test_a_point_named_twice_is_one_column():
    points = ["resid_post.1", "hidden_states[2]", "blocks.1.hook_resid_post", "resid_post.-2"]
    assert [name for name, _, _ in columns(points)] == ["resid_post.1"]


def test_two_names_of_one_place_are_two_columns_read_there():
    readings = read("resid_pre.1, resid_post.0, resid_pre.0, embeddings")
    names = [reading.column.name for reading in readings]
    assert names == ["resid_pre.1", "resid_post.0", "resid_pre.0", "embeddings"]
    assert len({reading.place for reading in readings}) == 2


@pytest.mark.parametrize(
    ("points", "depth"),
    [
        ("embeddings, resid_pre.0", 0),
        ("resid_pre.2", 2),
        ("q.0, attn_received.1", 2),
        ("resid_post.0, resid_post.2", 3),
        ("final_norm", None),
        ("embeddings, final_norm", None),
    ],
)
def test_as_many_blocks_run_as_the_points_need(points, depth):
    assert find_depth(read(points)) == depth


def test_a_level_is_told_by_whether_texts_are_pooled():
    assert make_schema(read("resid_post.0")).level == "tokens"
    assert make_schema(read("resid_post.0", pool="mean")).level == "texts"


def test_logits_are_their_largest_with_ids_or_those_of_chosen_tokens():
    assert columns("logits", top_k=5) == [
        ("logits.top_ids", "int32", (5,)),
        ("logits.top_values", "float32", (5,)),
        ("logits.logsumexp", "float32", (1,)),
    ]
    assert columns("logits", pool="last", token_ids=[7, 319]) == [
        ("logits.last.values", "float32", (2,)),
        ("logits.last.logsumexp", "float32", (1,)),
    ]
    assert columns("logits", top_k=1000)[0] == ("logits.top_ids", "int32", (320,))


@pytest.mark.parametrize(
    ("points", "settings", "message"),
    [
        ("attn_probs.1", {}, r"attn_probs.1 is a whole map.*attn_entropy.1 or attn_received.1"),
        ("attn_scores.[:]", {"pool": "mean"}, "attn_scores.0 is a whole map"),
        ("logits", {}, "logits are 320 numbers a row; say which to keep"),
        ("logits", {"top_k": 3, "pool": "mean"}, "not added up by 'mean'; pool last or first"),
        ("logits", {"token_ids": [3, 320]}, "token id 320 is not one of the model's 0 to 319"),
        ("logits", {"token_ids": [-1]}, "token id -1 is not"),
        ("final_norm", {"top_k": 3}, "belong to the point logits; name it too"),
        ("resid_post.3", {}, "layer|indices"),
        ([], {}, "no points were named"),
    ],
)
def test_what_cannot_be_a_column_is_refused(points, settings, message):
    with pytest.raises(PointError, match=message):
        read(points, **settings)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ("resid_post.2", "above the 2 blocks that were loaded; load it with layers=3 or more"),
        ("final_norm", "load it without layers="),
    ],
)
def test_points_above_the_loaded_blocks_are_refused(points, message):
    assert read("resid_post.1, resid_pre.2", loaded=2)
    with pytest.raises(PointError, match=message):
        read(points, loaded=2)
