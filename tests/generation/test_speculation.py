"""Draft tokens save steps and change nothing: the tokens chosen are the model's own."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from oracle import make_model

from phiscope.activations.capture import make_step_plan
from phiscope.activations.edits import Add
from phiscope.activations.inspection import Inspection, make_inspection
from phiscope.activations.points import Point, resolve_points
from phiscope.errors import NonFiniteError, UnsupportedError
from phiscope.generation.drafting import Draft, DraftAsk, look_up
from phiscope.generation.engine import Engine
from phiscope.generation.options import GenerationOptions
from phiscope.packing import pack

PROMPT = [72, 101, 108, 72, 101, 108, 72, 101]
GREEDY = GenerationOptions(max_new_tokens=20, ignore_eos=True)
SAMPLED = dataclasses.replace(GREEDY, temperature=0.8, seed=7)
HARD = dataclasses.replace(
    SAMPLED, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.2, logit_bias={65: 2.0}
)


def make_plan(packed, inspections, logit_rows):
    return make_step_plan(packed, inspections, logit_rows=logit_rows)


@pytest.fixture(scope="module")
def draft_model(model):
    """Much like the model: about half of what it drafts is right."""
    return make_neighbour(model, 0.1)


def make_neighbour(model, spread):
    """The same model with noise on all weights."""
    near = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    for parameter in near.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.add_(noise * parameter.std() * spread)
    return near


class Oracle:
    """Knows the completion, and says something else at every `period`-th place."""

    def __init__(self, token_ids, period=1000):
        self.token_ids, self.period = token_ids, period

    def draft(self, asks: list[DraftAsk]) -> list[Draft]:
        return [Draft(self._tell(len(ask.token_ids), ask.num_wanted)) for ask in asks]

    def _tell(self, start, num_wanted):
        places = range(start, min(start + num_wanted, len(self.token_ids)))
        return tuple((self.token_ids[i] + (i % self.period == 0)) % 257 for i in places)


def run(model, tokenizer, prompt, options, drafter=None, **kwargs):
    engine = Engine(model, tokenizer, num_slots=4, make_plan=make_plan)
    drafter = engine.draft_with(drafter) if isinstance(drafter, torch.nn.Module) else drafter
    drafter = engine.prompt_lookup if drafter == "prompt-lookup" else drafter
    return engine.submit(prompt, options, drafter=drafter, **kwargs).result()


@pytest.mark.parametrize("num_draft", [1, 2, 5, 30])
@pytest.mark.parametrize("drafter", ["prompt-lookup", "model"])
def test_speculative_equals_greedy(drafter, num_draft, model, draft_model, tokenizer):
    drafter = draft_model if drafter == "model" else drafter
    options = dataclasses.replace(GREEDY, draft_tokens=num_draft, max_new_tokens=50)
    (ours,) = run(model, tokenizer, PROMPT, options, drafter)
    plain = dataclasses.replace(options, draft_tokens=None)
    assert ours.token_ids == run(model, tokenizer, PROMPT, plain)[0].token_ids
    assert 0 < ours.num_accepted < ours.num_drafted


@pytest.mark.parametrize("options", [SAMPLED, HARD], ids=["temperature", "all"])
@pytest.mark.parametrize("period", [1, 3, 1000])
def test_certain_drafts_leave_the_samples_of_a_seed_as_they_are(period, options, model, tokenizer):
    options = dataclasses.replace(
        options, presence_penalty=0.3, frequency_penalty=0.2, logprobs=2, stop=("\n",), n=3
    )
    plain = run(model, tokenizer, PROMPT, options)
    oracle = Oracle(PROMPT + plain[0].token_ids, period)
    drafted = run(model, tokenizer, PROMPT, options, oracle)
    for ours, theirs in zip(drafted, plain, strict=True):
        assert (ours.token_ids, ours.text) == (theirs.token_ids, theirs.text)
        assert (ours.finish_reason, ours.stop_reason) == (theirs.finish_reason, theirs.stop_reason)
        for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-9)
            assert [i for i, _ in a.top] == [i for i, _ in b.top]
    num_right = drafted[0].num_accepted
    assert (num_right == 0) == (period == 1)
    assert (num_right == drafted[0].num_drafted) == (period == 1000)


def test_steps_are_saved(model, tokenizer):
    (plain,) = run(model, tokenizer, PROMPT, GREEDY)
    engine = Engine(model, tokenizer)
    request = engine.submit(PROMPT, GREEDY, drafter=Oracle(PROMPT + plain.token_ids))
    num_steps = sum(1 for _ in iter(engine.step, False)) + 1
    assert num_steps == 1 + math.ceil(19 / 5)
    assert request.result()[0].token_ids == plain.token_ids


@pytest.mark.parametrize("stop", [{"stop_token_ids": True}, {"stop": True}])
def test_a_draft_token_may_be_the_last(stop, model, tokenizer):
    (whole,) = run(model, tokenizer, PROMPT, GREEDY)
    last = whole.token_ids[8]
    stops = {"stop_token_ids": (last,)} if "stop_token_ids" in stop else {"stop": (chr(last),)}
    options = dataclasses.replace(GREEDY, **stops)
    points = tuple(resolve_points("resid_post.0", 2))
    inspect = Inspection(points, (), len(PROMPT))
    (plain,) = run(model, tokenizer, PROMPT, options, inspect=inspect)
    oracle = Oracle(PROMPT + whole.token_ids)
    (ours,) = run(model, tokenizer, PROMPT, options, oracle, inspect=inspect)
    assert (ours.token_ids, ours.text) == (plain.token_ids, plain.text)
    assert ours.labels == plain.labels
    assert len(ours.states["resid_post.0"]) == len(PROMPT) + len(ours.token_ids)


@pytest.mark.parametrize("period", [1, 2, 3, 1000])
def test_rows_of_rejected_tokens_are_not_kept_and_steering_applies(period, model, tokenizer):
    spec = "resid_post.1, attn_probs.1, attn_scores.0, logits, embeddings"
    add = Add(Point("resid_post", 0), torch.arange(32.0) % 3, phase="completion")
    inspect = make_inspection(model.config, spec, [add], prompt_length=len(PROMPT))
    (plain,) = run(model, tokenizer, PROMPT, GREEDY, inspect=inspect)
    (unsteered,) = run(model, tokenizer, PROMPT, GREEDY)
    assert plain.token_ids != unsteered.token_ids
    oracle = Oracle(PROMPT + plain.token_ids, period)
    (ours,) = run(model, tokenizer, PROMPT, GREEDY, oracle, inspect=inspect)
    assert ours.token_ids == plain.token_ids
    assert ours.labels == plain.labels
    assert ours.states.keys() == plain.states.keys()
    for name, rows in plain.states.items():
        torch.testing.assert_close(ours.states[name], rows, atol=1e-9, rtol=1e-9)


def test_what_is_drafted_does_not_depend_on_the_batch(model, draft_model, tokenizer):
    settings = [
        (PROMPT, SAMPLED, "model"),
        (PROMPT[:3], dataclasses.replace(HARD, n=3), "model"),
        (PROMPT * 2, GREEDY, "lookup"),
        (PROMPT[::-1], SAMPLED, None),
        (PROMPT[1:], dataclasses.replace(HARD, presence_penalty=0.5, draft_tokens=2), "model"),
        (list(range(30)), SAMPLED, "lookup"),
    ]
    for num_slots, budget in ((2, 10), (3, 15), (6, 200)):
        engine = Engine(model, tokenizer, num_slots=num_slots, token_budget=budget)
        together = [submit(engine, draft_model, *setting) for setting in settings]
        engine.run()
        for request, setting in zip(together, settings, strict=True):
            alone = submit(Engine(model, tokenizer, num_slots=1), draft_model, *setting).result()
            for ours, theirs in zip(request.result(), alone, strict=True):
                assert ours.token_ids == theirs.token_ids
                assert ours.num_drafted == theirs.num_drafted
                assert ours.num_accepted == theirs.num_accepted


def submit(engine, draft_model, prompt, options, drafter):
    drafters = {
        "model": lambda: engine.draft_with(draft_model),
        "lookup": lambda: engine.prompt_lookup,
        None: lambda: None,
    }
    return engine.submit(prompt, options, drafter=drafters[drafter]())


def test_the_draft_model_runs_each_token_once(model, tokenizer):
    """Drafting by the model itself, everything greedy is right, and its cache says the same."""
    (ours,) = run(model, tokenizer, PROMPT, GREEDY, model)
    assert ours.num_drafted == ours.num_accepted == 15  # 20 tokens: 1 and 3 times 4 + 1, then 3 + 1


def test_impossible_drafts_are_refused(model, config, tokenizer):
    engine = Engine(model, tokenizer, num_slots=3, token_budget=9)
    small = make_model(dataclasses.replace(config, vocab_size=256, bos_token_id=0, eos_token_id=0))
    with pytest.raises(UnsupportedError, match=r"256 token ids .* 257"):
        engine.draft_with(small)
    with pytest.raises(ValueError, match="at most 2, got 4"):
        engine.submit(PROMPT, GREEDY, drafter=engine.prompt_lookup)
    with pytest.raises(ValueError, match="draft_tokens=2 needs a draft"):
        engine.submit(PROMPT, dataclasses.replace(GREEDY, draft_tokens=2))
    with pytest.raises(ValueError, match="no tokens to draft from"):
        engine.submit(torch.zeros(3, 32), GREEDY, drafter=engine.prompt_lookup)
    with pytest.raises(ValueError, match="draft_tokens must be at least 1"):
        dataclasses.replace(GREEDY, draft_tokens=0)


def test_a_draft_model_that_fails_fails_its_own_requests(model, config, tokenizer):
    broken = make_model(config)
    broken.lm_head.bias[3] = math.nan
    engine = Engine(model, tokenizer)
    failing = engine.submit(PROMPT, GREEDY, drafter=engine.draft_with(broken))
    sound = engine.submit(PROMPT, GREEDY)
    with pytest.raises(NonFiniteError, match="draft model"):
        failing.result()
    assert sound.result()[0].token_ids == run(model, tokenizer, PROMPT, GREEDY)[0].token_ids


@pytest.mark.parametrize("spec", ["", "resid_post.1"])
def test_a_wrong_guess_that_breaks_the_forward_fails_nothing(spec, config, tokenizer):
    """Attention gives a token to come the weight 0, and 0 times NaN is NaN."""
    model = make_model(config)
    model.model.embed_tokens.weight[200] = math.nan
    points = tuple(resolve_points(spec, 2)) if spec else ()
    inspect = Inspection(points, (), len(PROMPT)) if spec else None
    options = dataclasses.replace(SAMPLED, logit_bias={200: -math.inf})
    (plain,) = run(model, tokenizer, PROMPT, options, inspect=inspect)
    oracle = Oracle([*PROMPT, *plain.token_ids[:9], 200, *plain.token_ids[10:]])
    (ours,) = run(model, tokenizer, PROMPT, options, oracle, inspect=inspect)
    assert ours.token_ids == plain.token_ids
    assert ours.num_accepted > 4
    for name, rows in plain.states.items():
        torch.testing.assert_close(ours.states[name], rows, atol=1e-9, rtol=1e-9)


def test_beyond_the_context_of_the_draft_model_nothing_is_drafted(model, config, tokenizer):
    short = make_model(dataclasses.replace(config, max_position_embeddings=12))
    (ours,) = run(model, tokenizer, PROMPT, GREEDY, short)
    assert ours.token_ids == run(model, tokenizer, PROMPT, GREEDY)[0].token_ids
    assert 0 < ours.num_drafted <= 8


def test_look_up_copies_on_from_the_latest_longest_match():
    assert look_up([1, 2, 3, 9, 1, 2, 3, 8, 5, 1, 2, 3], 3) == [8, 5, 1]
    assert look_up([1, 2, 3, 4, 7, 2, 3], 2) == [4, 7]
    assert look_up([5, 6, 5, 6, 5], 5) == [6, 5, 6, 5, 6]
    assert look_up([1, 2, 3], 4) == []
    assert look_up([4], 4) == []
    assert look_up([4, 4], 3) == [4, 4, 4]


VOCABULARY = 5
NUM_SAMPLES = 1500


@pytest.fixture(scope="module")
def small_pair(config):
    """A model of five tokens and another one that drafts for it, and not too well."""
    small = dataclasses.replace(config, vocab_size=5, bos_token_id=4, eos_token_id=4)
    model = make_model(small, seed=1)
    return model, make_neighbour(model, 0.4)


def exact_probabilities(model, prompt, length, temperature):
    """Of each completion of this length, by whole forwards."""
    found = {}
    for ids in itertools.product(range(VOCABULARY), repeat=length):
        tokens, packed = pack([[*prompt, *ids]])
        probs = (model(tokens, packed) / temperature).softmax(-1)
        rows = probs[len(prompt) - 1 : -1]
        found[ids] = math.prod(row[i].item() for row, i in zip(rows, ids, strict=True))
    return found


def surprise(counts, probs):
    """Chi-square of counts in standard deviations above its mean; rare outcomes are one class."""
    total = sum(counts.values())
    rare = [k for k, p in probs.items() if p * total < 8]
    classes = [(counts.get(k, 0), p * total) for k, p in probs.items() if p * total >= 8]
    classes.append((sum(counts.get(k, 0) for k in rare), sum(probs[k] for k in rare) * total))
    statistic = sum((n - e) ** 2 / e for n, e in classes if e)
    freedom = len(classes) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


class Liar:
    """Draws as another drafter does and says that every token was as likely."""

    def __init__(self, drafter):
        self.drafter = drafter

    def draft(self, asks):
        drafts = self.drafter.draft(asks)
        return [Draft(d.token_ids, torch.full_like(d.probs, 1 / VOCABULARY)) for d in drafts]


def count_completions(model, make_drafter, seed):
    engine = Engine(model, num_slots=128, token_budget=1024)
    options = GenerationOptions(
        max_new_tokens=3, temperature=1.3, seed=seed, n=NUM_SAMPLES, ignore_eos=True, draft_tokens=2
    )
    completions = engine.submit([1, 3, 0], options, drafter=make_drafter(engine)).result()
    counts = {}
    for completion in completions:
        key = tuple(completion.token_ids)
        counts[key] = counts.get(key, 0) + 1
    num_drafted = sum(c.num_drafted for c in completions)
    return counts, sum(c.num_accepted for c in completions) / num_drafted


def test_sampling_with_a_draft_model_follows_the_model_and_a_wrong_rule_would_be_seen(small_pair):
    model, other = small_pair
    probs = exact_probabilities(model, [1, 3, 0], 3, 1.3)
    assert sum(probs.values()) == pytest.approx(1)
    counts, rate = count_completions(model, lambda engine: engine.draft_with(other), seed=5)
    assert 0.2 < rate < 0.9
    assert surprise(counts, probs) < 4
    wrong, _ = count_completions(model, lambda engine: Liar(engine.draft_with(other)), seed=5)
    assert surprise(wrong, probs) > 12
