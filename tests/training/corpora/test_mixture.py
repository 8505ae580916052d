from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_corpora import make_shards

from phiscope.training.corpora.mixture import Mixture
from phiscope.training.corpora.windows import Windows

WEIGHTS = st.lists(st.floats(0.001, 100), min_size=1, max_size=5)


def make_windows(size=40, *, length=8, seed=0, name="tokenizer"):
    return Windows(shards=make_shards([size], name=name), length=length, seed=seed)


def make_mixture(weights, seed=0):
    sources = [make_windows(30 + 8 * number, seed=number) for number in range(len(weights))]
    return Mixture(sources=sources, weights=weights, seed=seed)


@given(WEIGHTS, st.integers(0, 99))
def test_shares_are_never_further_from_the_weights_than_there_are_sources(weights, seed):
    mixture = make_mixture(weights, seed)
    counts = [0] * len(weights)
    for number in range(200):
        source, inner = mixture.draw(number)
        assert inner == counts[source]
        counts[source] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - (number + 1) * weight / sum(weights)) <= len(weights)


def test_shares_converge_to_the_weights():
    mixture = make_mixture([5.0, 3.0, 1.9, 0.1])
    drawn = Counter(mixture.draw(number)[0] for number in range(20_000))
    assert [round(drawn[source] / 20_000, 3) for source in range(4)] == [0.5, 0.3, 0.19, 0.01]


def test_a_draw_far_in_is_known_without_those_before():
    mixture = make_mixture([1.0, 2.0])
    far = 10**15
    inner = dict(mixture.draw(number) for number in range(far, far + 3))
    assert inner[0] == pytest.approx(far / 3, abs=2)
    assert inner[1] == pytest.approx(far * 2 / 3, abs=2)


@given(WEIGHTS, st.integers(0, 60))
def test_a_window_is_that_of_its_source(weights, number):
    mixture = make_mixture(weights)
    source, inner = mixture.draw(number)
    window, wanted = mixture.window(number), mixture.sources[source].window(inner)
    assert torch.equal(window.input_ids, wanted.input_ids)
    assert torch.equal(window.targets, wanted.targets)
    assert window.lengths == wanted.lengths


def test_a_mixture_of_one_is_its_source():
    mixture = make_mixture([3.0])
    assert torch.equal(mixture.batch(2, 4).targets, mixture.sources[0].batch(2, 4).targets)


@given(WEIGHTS, st.integers(0, 9), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_ranks_share_a_step_in_order(weights, step, num_ranks):
    mixture = make_mixture(weights)
    whole = mixture.batch(step, 12)
    parts = [mixture.batch(step, 12, rank, num_ranks) for rank in range(num_ranks)]
    assert torch.equal(torch.cat([part.input_ids for part in parts]), whole.input_ids)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)


def test_the_digest_tells_mixtures_apart():
    weights = ([1.0, 2.0], [2.0, 1.0])
    mixtures = [make_mixture(one, seed) for one in weights for seed in (0, 1)]
    assert len({mixture.digest for mixture in mixtures}) == 4
    assert make_mixture([1.0, 2.0]).digest == mixtures[0].digest


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ([], [], "0 sources"),
        ([{}], [1.0, 2.0], "1 sources cannot have 2 weights"),
        ([{}, {}], [1.0, 0.0], "above 0 and finite"),
        ([{}, {}], [1.0, float("nan")], "above 0 and finite"),
        ([{}, {"length": 4}], [1.0, 1.0], r"equally long, got \[8, 4\]"),
        ([{}, {"name": "other"}], [1.0, 1.0], "different tokenizers"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(sources, weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture(sources=[make_windows(**options) for options in sources], weights=weights)
