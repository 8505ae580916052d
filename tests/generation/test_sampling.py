import itertools
import math

import pytest
import torch

from phiscope.generation import sampling
from phiscope.generation.options import GenerationOptions
from phiscope.generation.sampling import Proposal, SamplingState, choose_tokens, make_generator

V = 40
PROMPT = (1, 5, 5, 9)
SAMPLED = (9, 2, 2, 7)


@pytest.fixture
def logits():
    return torch.randn(6, V, generator=torch.Generator().manual_seed(1)) * 3


def make_state(seed=0, index=0, num_tokens=V, **options):
    state = SamplingState(
        GenerationOptions(**options),
        seed=seed,
        index=index,
        prompt_ids=PROMPT,
        num_tokens=num_tokens,
    )
    for token_id in SAMPLED:
        state.add(token_id)
    return state


def peers():
    """Options, and transformers' processors that mean the same."""
    process = pytest.importorskip("transformers").generation.logits_process
    return {
        "temperature": ({"temperature": 0.7}, [process.TemperatureLogitsWarper(0.7)]),
        "top_k": ({"temperature": 1.0, "top_k": 5}, [process.TopKLogitsWarper(5)]),
        "top_p": ({"temperature": 1.0, "top_p": 0.8}, [process.TopPLogitsWarper(0.8)]),
        "min_p": ({"temperature": 1.0, "min_p": 0.1}, [process.MinPLogitsWarper(0.1)]),
        "repetition": (
            {"temperature": 1.0, "repetition_penalty": 1.3},
            [process.RepetitionPenaltyLogitsProcessor(1.3)],
        ),
        "bias": (
            {"temperature": 1.0, "logit_bias": {3: 2.0, 7: -4.0}},
            [process.SequenceBiasLogitsProcessor({(3,): 2.0, (7,): -4.0})],
        ),
        "all": (
            {
                "temperature": 1.4,
                "top_k": 20,
                "top_p": 0.9,
                "min_p": 0.02,
                "repetition_penalty": 0.8,
                "logit_bias": {11: 3.0},
            },
            [
                process.SequenceBiasLogitsProcessor({(11,): 3.0}),
                process.RepetitionPenaltyLogitsProcessor(0.8),
                process.TemperatureLogitsWarper(1.4),
                process.TopKLogitsWarper(20),
                process.TopPLogitsWarper(0.9),
                process.MinPLogitsWarper(0.02),
            ],
        ),
    }


@pytest.mark.parametrize(
    "name", ["temperature", "top_k", "top_p", "min_p", "repetition", "bias", "all"]
)
def test_processors_equal_transformers(name, logits):
    options, processors = peers()[name]
    states = [make_state(**options)] * len(logits)
    ours = sampling.keep_likely(sampling.process(logits, states), states)
    ids = torch.tensor([[*PROMPT, *SAMPLED]]).expand(len(logits), -1)
    theirs = logits.clone()
    for processor in processors:
        theirs = processor(ids, theirs)
    assert torch.equal(ours.isneginf(), theirs.isneginf())
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1))


def test_processors_leave_their_input_alone(logits):
    before = logits.clone()
    options = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.1,
        "repetition_penalty": 2.0,
        "presence_penalty": 1.0,
        "logit_bias": {2: 1.0},
    }
    choose_tokens(logits, [make_state(num_tokens=V - 5, **options)] * len(logits), V - 5)
    assert torch.equal(logits, before)


def test_presence_and_frequency_count_the_completion_alone(logits):
    states = [make_state(presence_penalty=0.5, frequency_penalty=0.25)] * len(logits)
    taken = logits - sampling.process(logits, states)
    expected = torch.zeros(V)
    expected[9], expected[2], expected[7] = 0.75, 1.0, 0.75
    torch.testing.assert_close(taken, expected.expand(len(logits), -1))


def test_rows_with_different_options_equal_each_row_alone(logits):
    options = [
        {},
        {"temperature": 0.9, "top_k": 4},
        {"temperature": 1.3, "top_p": 0.7, "repetition_penalty": 1.2},
        {"frequency_penalty": 2.0, "logit_bias": {4: 9.0}},
        {"temperature": 0.6, "min_p": 0.2, "presence_penalty": 1.0},
        {"temperature": 1.0, "top_k": 7, "top_p": 0.9},
    ]
    together, _ = choose_tokens(logits, [make_state(**o) for o in options], V)
    alone = [
        choose_tokens(logits[i : i + 1], [make_state(**o)], V)[0] for i, o in enumerate(options)
    ]
    assert together.tolist() == torch.cat(alone).tolist()


def test_spare_ids_are_never_chosen(logits):
    logits[:, 30:] += 50
    for options in ({}, {"temperature": 5.0}, {"temperature": 1.0, "top_k": 1}):
        states = [make_state(num_tokens=30, **options) for _ in logits]
        ids, is_possible = choose_tokens(logits, states, 30)
        assert ids.max() < 30
        assert is_possible.all()


def test_draw_follows_the_probabilities():
    probs = torch.tensor([0.5, 0.0, 0.3, 0.2])
    uniforms = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    ids = sampling.draw(probs.log().expand(len(uniforms), -1), uniforms)
    counts = ids.bincount(minlength=4) / len(uniforms)
    torch.testing.assert_close(counts, probs, atol=2e-4, rtol=0)


@pytest.mark.parametrize("rule", ["kept or replaced", "always kept", "replaced from p"])
def test_a_draft_token_kept_or_replaced_is_a_draw_from_the_model(rule):
    """Summed over all draft tokens and all numbers, by quadrature; two wrong rules are seen."""
    p = torch.tensor([0.4, 0.05, 0.25, 0.3, 0.0], dtype=torch.float64)
    q = torch.tensor([0.1, 0.5, 0.25, 0.1, 0.05], dtype=torch.float64)
    size = 400
    found = torch.zeros(5, dtype=torch.float64)
    for token_id, uniform in itertools.product(range(5), (torch.arange(size) + 0.5) / size):
        kept = sampling.keep_or_replace(p, Proposal(token_id, q), uniform.double())
        wrong = torch.tensor(token_id) if rule == "always kept" else kept
        if rule == "replaced from p" and kept != token_id:
            wrong = sampling.draw_from(p[None], uniform.double()[None])[0]
        found[wrong] += q[token_id] / size
    error = float((found - p).abs().max())
    assert (error < 3e-3) == (rule == "kept or replaced")


def test_a_draft_drawn_from_the_very_distribution_is_always_kept():
    p = torch.tensor([0.3, 0.7], dtype=torch.float64)
    for uniform in torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64):
        assert sampling.keep_or_replace(p, Proposal(0, p), uniform) == 0
        assert sampling.keep_or_replace(p, Proposal(0, p * (1 + 1e-15)), uniform) in (0, 1)


def test_a_state_ahead_counts_the_tokens_and_leaves_the_state_as_it_is(logits):
    state = make_state(temperature=1.0, frequency_penalty=1.0)
    before = state.counts.clone()
    ahead = state.ahead([3, 3])
    assert (ahead.counts - state.counts)[3] == 2
    assert torch.equal(state.counts, before)
    state.add(3)
    state.add(3)
    for one in (ahead, state):
        again, _ = choose_tokens(logits[:1], [one], V)
        assert again.tolist() == choose_tokens(logits[:1], [state], V)[0].tolist()


def test_draw_at_the_edges_takes_possible_ids():
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 1.0, -math.inf]).expand(2, -1)
    uniforms = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert sampling.draw(logits, uniforms).tolist() == [1, 3]


def test_stream_depends_on_seed_and_index_alone():
    def numbers(seed, index):
        return torch.rand(4, generator=make_generator(seed, index)).tolist()

    streams = {pair: tuple(numbers(*pair)) for pair in itertools.product((0, 1, 2**62), (0, 1))}
    assert len(set(streams.values())) == len(streams)
    assert all(tuple(numbers(*pair)) == stream for pair, stream in streams.items())


@pytest.mark.parametrize("temperature", [1e-30, 1e-300, 1e-3])
def test_temperature_near_zero_equals_greedy(temperature, logits):
    cold, _ = choose_tokens(logits, [make_state(temperature=temperature)] * len(logits), V)
    assert cold.tolist() == logits.argmax(-1).tolist()


def test_ties_at_the_kth_place_are_kept():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]])
    assert sampling.keep_top_k(logits, [2]).isneginf().tolist() == [
        [False, True, False, False, True]
    ]


def test_top_k_beyond_the_vocabulary_keeps_all(logits):
    for k in (V + 5, 10**30):
        assert torch.equal(sampling.keep_top_k(logits, [k] * len(logits)), logits)


def test_row_without_any_token_left_is_told(logits):
    banned = dict.fromkeys(range(V), -math.inf)
    states = [make_state(), make_state(logit_bias=banned), make_state(logit_bias={3: 1e300})]
    assert choose_tokens(logits[:3], states, V)[1].tolist() == [True, False, False]


@pytest.mark.parametrize("p", [0.013, 0.51, 0.9, 0.999])
def test_top_p_of_a_large_vocabulary_equals_sorting_it(p):
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(2)).double()
    logits *= torch.tensor([[0.01], [0.5], [2.0], [8.0]])
    kept = ~sampling.keep_top_p(logits, torch.full((4, 1), p)).isneginf()
    for row, is_kept in zip(logits.softmax(-1), kept, strict=True):
        probs = row.sort(descending=True).values
        fewest = int((probs.cumsum(0) < p * (1 - 1e-12)).sum()) + 1
        assert int(is_kept.sum()) == fewest
        assert row[is_kept].min() >= row[~is_kept].max()
