import pytest

from phiscope.extraction.options import ExtractOptions, make_options

POINTS = "resid_post.0"


@pytest.mark.parametrize(
    ("given", "pool"),
    [
        (None, ()),
        ((), ()),
        ("mean", ("mean",)),
        (["max", "mean", "max"], ("max", "mean")),
        (iter(["first"]), ("first",)),
    ],
)
def test_pools_are_none_one_or_several_each_once_in_the_order_given(given, pool):
    assert make_options(points=POINTS, pool=given).pool == pool


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "median"}, "no pooling 'median'; choose from mean, last"),
        ({"pool": ""}, "no pooling ''"),
        ({"tokens": "middle:3"}, "no selection 'middle:3'; choose from all, first:K"),
        ({"overflow": "wrap"}, "overflow is error, truncate or window, not 'wrap'"),
        ({"dtype": "float64"}, "no dtype 'float64'; choose from float16"),
        ({"window": 0}, "window must be a whole number from 1, got 0"),
        ({"token_budget": -5}, "token_budget must be a whole number from 1, got -5"),
        ({"shard_size": True}, "shard_size must be a whole number from 1, got True"),
        ({"shard_size": 2.5}, "shard_size must be a whole number from 1, got 2.5"),
        ({"top_k": "3"}, "top_k must be a whole number from 1, got '3'"),
        ({"stride": 4}, "stride belongs to overflow='window', not 'error'"),
        ({"stride": 9, "window": 8, "overflow": "window"}, "stride 9 would skip tokens"),
        ({"top_k": 3, "token_ids": [1]}, "top_k and token_ids exclude each other"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_options(points=POINTS, **settings)


def test_a_misspelt_setting_is_named_with_the_one_that_may_be_meant():
    with pytest.raises(TypeError, match="no option 'overflw' of an extraction; did you mean over"):
        make_options(points=POINTS, overflw="error")
    with pytest.raises(TypeError, match=r"no option 'xyzzy' of an extraction$"):
        make_options(points=POINTS, xyzzy=1)


def test_options_made_by_name_are_those_made_directly():
    made = make_options(points=POINTS, pool="mean", token_ids=[4, 2], window=8)
    assert made == ExtractOptions(points=POINTS, pool=("mean",), token_ids=(4, 2), window=8)
