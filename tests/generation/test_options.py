import dataclasses
import math

import pytest

from phiscope.generation.options import GenerationOptions


def test_default_is_greedy_and_bounded():
    options = GenerationOptions()
    assert options.temperature == 0
    assert options.max_new_tokens > 0
    assert options.stop_token_ids is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", -1),
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("presence_penalty", math.inf),
        ("frequency_penalty", math.nan),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: math.inf}),
        ("seed", -1),
        ("seed", 2**63),
        ("n", 0),
        ("stop", ("a", "")),
        ("stop_token_ids", (-1,)),
        ("logprobs", -1),
    ],
)
def test_impossible_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name.split("_")[0]):
        GenerationOptions(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 3.5),
        ("max_new_tokens", True),
        ("max_new_tokens", "3"),
        ("temperature", "1"),
        ("temperature", True),
        ("n", 2.0),
        ("stop", "word"),
        ("stop", (3,)),
        ("stop_token_ids", 5),
        ("stop_token_ids", "5"),
        ("logit_bias", [1]),
        ("logit_bias", {"1": 2.0}),
        ("echo", 1),
        ("ignore_eos", "yes"),
    ],
)
def test_wrong_type_is_refused_by_name(name, value):
    with pytest.raises(TypeError, match=name):
        GenerationOptions(**{name: value})


def test_scoring_without_sampling_needs_echo_and_logprobs():
    scoring = GenerationOptions(max_new_tokens=0, echo=True, logprobs=0)
    assert scoring.max_new_tokens == 0
    for missing in ({"echo": False}, {"logprobs": None}, {"n": 2}):
        with pytest.raises(ValueError, match="max_new_tokens=0"):
            dataclasses.replace(scoring, **missing)


def test_minus_infinity_bans_a_token():
    assert GenerationOptions(logit_bias={3: -math.inf}).logit_bias == {3: -math.inf}


def test_options_cannot_be_changed_from_outside():
    bias, stop = {1: 2.0}, ["a"]
    options = GenerationOptions(logit_bias=bias, stop=stop)
    bias[1], stop[0] = 5.0, "b"
    assert options.logit_bias == {1: 2.0}
    assert options.stop == ("a",)
    with pytest.raises(TypeError):
        options.logit_bias[1] = 0.0
    assert hash(options) == hash(GenerationOptions(logit_bias={1: 2.0}, stop=("a",)))
