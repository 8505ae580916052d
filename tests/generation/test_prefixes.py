"""What lies in the cache already is not run again, and nobody can tell by the tokens."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import make_model
from torch import nn

from phiscope.activations.capture import make_step_plan
from phiscope.activations.edits import Ablate, Add, Knockout, Replace, Scale, Transform
from phiscope.activations.inspection import make_inspection
from phiscope.activations.points import Point
from phiscope.generation.engine import Engine
from phiscope.generation.options import GenerationOptions
from phiscope.generation.prefixes import Match, Prefix, Prefixes, find_longest
from phiscope.prepacked import prepack, unpack

PROMPT = list(range(40, 60))
GREEDY = GenerationOptions(max_new_tokens=6, ignore_eos=True, logprobs=0)
WIDTH = 32


def make_plan(packed, inspections, logit_rows):
    return make_step_plan(packed, inspections, logit_rows=logit_rows)


def steer(config, prompt, edits):
    return make_inspection(config, (), edits, prompt_length=len(prompt)) if edits else None


def add(scale=1.0, **kwargs):
    return Add(Point("resid_post", 0), torch.arange(WIDTH) % 3.0, scale, **kwargs)


@pytest.fixture
def own_model(model):
    """To be changed."""
    return copy.deepcopy(model)


@pytest.fixture
def complete(own_model, tokenizer):
    """Run a prompt in an engine that stays, and compare with an engine that reuses nothing."""
    engine = Engine(own_model, tokenizer, num_slots=3, make_plan=make_plan)

    def run(prompt, edits=(), options=GREEDY, fresh=own_model):
        inspect = steer(own_model.config, prompt, edits)
        (ours,) = engine.submit(prompt, options, inspect=inspect).result()
        plain = Engine(fresh, tokenizer, make_plan=make_plan, reuses_prefixes=False)
        (theirs,) = plain.submit(prompt, options, inspect=inspect).result()
        assert ours.token_ids == theirs.token_ids
        assert theirs.num_reused == 0
        for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-9)
        return ours

    run.engine = engine
    return run


def test_a_prompt_that_goes_on_from_another_runs_only_the_rest(complete):
    first = complete(PROMPT)
    assert first.num_reused == 0
    again = complete(PROMPT)
    assert again.num_reused == len(PROMPT) - 1  # the last token's logits are needed
    longer = PROMPT + first.token_ids + [7, 8]
    assert complete(longer).num_reused == len(PROMPT) + 5  # the last token chosen did not run
    assert complete([*PROMPT[:9], 1, 2]).num_reused == 9
    assert complete([3, 4, 5]).num_reused == 0


def test_a_request_starts_from_one_that_is_running(model, tokenizer):
    engine = Engine(model, tokenizer, num_slots=2)
    first = engine.submit(PROMPT, GREEDY)
    engine.step()
    engine.step()
    second = engine.submit([*PROMPT, 1, 2], GREEDY)
    engine.run()
    assert second.result()[0].num_reused == len(PROMPT)
    alone = Engine(model, tokenizer)
    assert (
        second.result()[0].token_ids == alone.submit([*PROMPT, 1, 2], GREEDY).result()[0].token_ids
    )
    assert first.result()[0].num_reused == 0


def test_n_completions_share_what_the_first_reuses(complete):
    complete(PROMPT)
    options = dataclasses.replace(GREEDY, n=5, temperature=1.0, seed=1)
    completions = complete.engine.submit(PROMPT, options).result()
    plain = Engine(complete.engine._runner.model, reuses_prefixes=False, num_tokens=257)
    for ours, theirs in zip(completions, plain.submit(PROMPT, options).result(), strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.num_reused == len(PROMPT) - 1


def test_what_wants_all_of_the_prompt_runs_all_of_it(model, tokenizer):
    engine = Engine(model, tokenizer, make_plan=make_plan)
    engine.submit(PROMPT, GREEDY).result()
    (scored,) = engine.submit(PROMPT, dataclasses.replace(GREEDY, echo=True)).result()
    assert (scored.num_reused, len(scored.prompt_logprobs)) == (0, len(PROMPT))
    inspect = make_inspection(model.config, "resid_post.1", prompt_length=len(PROMPT))
    (kept,) = engine.submit(PROMPT, GREEDY, inspect=inspect).result()
    assert kept.num_reused == 0
    assert len(kept.states["resid_post.1"]) == len(PROMPT) + 6
    embeddings = model.model.embed_tokens.weight[PROMPT]
    assert engine.submit(embeddings, GREEDY).result()[0].num_reused == 0
    assert engine.submit(PROMPT, GREEDY).result()[0].num_reused == len(PROMPT) - 1


def test_only_equal_edits_share(complete):
    edits = {
        "none": [],
        "add": [add()],
        "twice": [add(), add()],
        "stronger": [add(2.0)],
        "some": [add(positions=(1, 2))],
        "elsewhere": [Add(Point("resid_pre", 1), add().vector)],
        "ablate": [Ablate(Point("resid_post", 0), add().vector)],
        "replace": [Replace(Point("resid_post", 0), add().vector, positions=(3,))],
        "scale": [Scale(Point("z", 0), 0.5)],
        "heads": [Scale(Point("z", 0), 0.5, heads=(1,))],
        "knockout": [Knockout(Point("attn_probs", 0), (0,))],
    }
    for these in edits.values():
        assert complete(PROMPT, these).num_reused == 0
    complete.engine.forget_prefixes()
    for these in edits.values():
        assert complete(PROMPT, these).num_reused == 0
        assert complete(PROMPT, these).num_reused == len(PROMPT) - 1


def test_edits_made_anew_with_the_same_numbers_share(complete):
    complete(PROMPT, [add()])
    assert complete(PROMPT, [add()]).num_reused == len(PROMPT) - 1


def test_a_vector_that_is_changed_in_place_is_another_edit(complete):
    edit = add()
    complete(PROMPT, [edit])
    edit.vector.mul_(-1)
    assert complete(PROMPT, [edit]).num_reused == 0


def test_a_vector_that_is_changed_meanwhile_leaves_nothing_to_reuse(complete):
    edit = add()
    inspect = steer(complete.engine.limits.config, PROMPT, [edit])
    request = complete.engine.submit(PROMPT, GREEDY, inspect=inspect)
    complete.engine.step()
    edit.vector.mul_(-1)
    request.result()
    assert complete(PROMPT, [edit]).num_reused == 0
    edit.vector.mul_(-1)
    assert complete(PROMPT, [edit]).num_reused == 0


def test_a_function_is_never_taken_for_equal(complete):
    edits = [Transform(Point("resid_post", 0), lambda rows, places: rows * 2)]
    complete(PROMPT, edits)
    assert complete(PROMPT, edits).num_reused == 0


@pytest.mark.parametrize("phase", ["prompt", "completion"])
def test_tokens_of_the_completion_are_not_shared_where_phases_differ(phase, complete):
    edits = [add(phase=phase)]
    first = complete(PROMPT, edits)
    longer = [*PROMPT, *first.token_ids[:4], 9]
    assert complete(longer, edits).num_reused == len(PROMPT)
    assert complete([*PROMPT[:5], 9], edits).num_reused == 5


CHANGES = {
    "in place": lambda m: m.model.layers[0].mlp.fc1.weight.mul_(1.5),
    "one number": lambda m: m.model.embed_tokens.weight[45].index_fill_(0, torch.tensor([3]), 9.0),
    "through data": lambda m: m.model.layers[0].mlp.fc1.weight.data.mul_(1.5),
    "other data": lambda m: setattr(
        m.model.layers[1].mlp.fc1.weight, "data", m.model.layers[1].mlp.fc1.weight * 2
    ),
    "other tensor": lambda m: setattr(
        m.model.layers[1].mlp.fc2, "weight", nn.Parameter(torch.ones(32, 48).double(), False)
    ),
    "other module": lambda m: m.model.layers.__setitem__(1, copy.deepcopy(m.model.layers[1])),
    "loaded": lambda m: m.load_state_dict({k: v * 1.1 for k, v in m.state_dict().items()}),
    "hook": lambda m: m.model.layers[0].mlp.register_forward_hook(lambda *run: run[-1] * 2),
    "method": lambda m: setattr(m.model.layers[0].mlp, "forward", lambda x, run: x),
    "gradients": lambda m: m.requires_grad_(True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_reuses_nothing_of_before(change, complete, own_model):
    complete(PROMPT)
    assert complete(PROMPT).num_reused == len(PROMPT) - 1
    CHANGES[change](own_model)
    assert complete(PROMPT).num_reused == 0
    can_tell = change not in ("hook", "method", "gradients")
    assert complete(PROMPT).num_reused == (len(PROMPT) - 1 if can_tell else 0)


def test_a_hook_that_is_gone_leaves_nothing_to_reuse(complete, own_model):
    handle = own_model.model.layers[0].mlp.register_forward_hook(lambda *run: run[-1] * 2)
    complete(PROMPT)
    handle.remove()
    assert complete(PROMPT).num_reused == 0


@pytest.mark.parametrize("n", [1, 3])
def test_a_model_changed_while_a_request_runs_leaves_nothing_of_it_to_reuse(n, complete, own_model):
    options = dataclasses.replace(GREEDY, n=n)
    begun = complete.engine.submit(PROMPT, options)
    complete.engine.step()
    own_model.lm_head.weight.mul_(1.0)
    own_model.model.layers[0].mlp.fc1.weight.mul_(1.5)
    assert complete([1, 2, 3]).num_reused == 0
    begun.result()
    assert complete(PROMPT).num_reused == 0


def test_an_heir_of_keys_from_before_a_change_leaves_nothing_to_reuse(own_model, tokenizer):
    engine = Engine(own_model, tokenizer, num_slots=2)
    engine.submit([1, 2, 3], dataclasses.replace(GREEDY, max_new_tokens=2))
    engine.submit(PROMPT, dataclasses.replace(GREEDY, n=3))
    engine.step()
    own_model.model.layers[0].mlp.fc1.weight.mul_(1.5)
    engine.run()
    assert engine.submit(PROMPT, GREEDY).result()[0].num_reused == 0


def test_weights_packed_anew_are_others(config):
    model = make_model(config, dtype=torch.float32)
    prepack(model)
    engine = Engine(model)
    for _ in range(2):
        (completion,) = engine.submit(PROMPT, GREEDY).result()
    assert completion.num_reused == len(PROMPT) - 1
    unpack(model)
    model.model.layers[0].mlp.fc1.weight.mul_(1.5)
    prepack(model)
    assert engine.submit(PROMPT, GREEDY).result()[0].num_reused == 0


def test_prefixes_can_be_forgotten(complete, own_model):
    complete(PROMPT)
    own_model.model.embed_tokens.weight.data[45, 7] = 3.0  # nobody is told, and few numbers differ
    complete.engine.forget_prefixes()
    assert complete(PROMPT).num_reused == 0


def test_a_cancelled_request_leaves_its_tokens_and_a_failed_one_none(model, tokenizer):
    engine = Engine(model, tokenizer)
    request = engine.submit(PROMPT, GREEDY)
    engine.step()
    request.cancel()
    assert engine.submit(PROMPT, GREEDY).result()[0].num_reused == len(PROMPT) - 1
    prompt = [*PROMPT[:4], 9, 9]
    overflowing = dataclasses.replace(GREEDY, temperature=1.0, frequency_penalty=-1.7e308)
    failing = engine.submit(prompt, overflowing)
    engine.run()
    assert failing.error is not None
    assert engine.submit(prompt, GREEDY).result()[0].num_reused == 4


def test_the_slot_used_longest_ago_goes_first(model, tokenizer):
    engine = Engine(model, tokenizer, num_slots=2)
    prompts = [[start + i for i in range(8)] for start in (0, 20, 40)]

    def reused(place):
        return engine.submit(prompts[place], GREEDY).result()[0].num_reused

    assert [reused(place) for place in (0, 1, 0, 2, 0, 1, 2)] == [0, 0, 7, 0, 7, 0, 0]


def test_slots_are_taken_over_or_copied():
    free = Prefixes(3)
    held = Prefix(free.take(None)[0], "", [1, 2, 3, 4])
    free.add(held)
    assert free.take(Match(held, 1)) == (1, held.slot)  # most of it would be lost
    assert free.take(Match(held, 2)) == (held.slot, None)
    assert free.take(Match(held, 2)) == (2, held.slot)  # it is in use
    assert len(free) == 0


def test_slots_whose_prefix_is_forgotten_are_used_before_those_never_used():
    free = Prefixes(3)
    slot, _ = free.take(None)
    free.add(Prefix(slot, "key", [1, 2]))
    assert free.take(None) == (1, None)
    free.add(Prefix(1, "key", [3]))
    free.forget()
    assert [free.take(None)[0] for _ in range(3)] == [0, 1, 2]


def test_the_longest_match_of_the_same_key_is_found():
    prefixes = [Prefix(0, "", [1, 2]), Prefix(1, "a", [1, 2, 3]), Prefix(2, "", [2, 1])]
    assert find_longest(prefixes, "", [1, 2, 3]) == Match(prefixes[0], 2)
    assert find_longest(prefixes, "a", [1, 2, 3, 4]) == Match(prefixes[1], 3)
    assert find_longest(prefixes, "b", [1, 2]) is None
    assert find_longest(prefixes, "", []) is None


EDITS = ((), (add(),), (add(2.0),), (add(phase="completion"),), (add(), Scale(Point("z", 1), 0.3)))
REQUESTS = st.tuples(
    st.sampled_from([(5, 6, 7, 8, 9, 10), (5, 6, 7, 1, 1, 1), (2, 3)]),
    st.lists(st.sampled_from([5, 6]), max_size=3),
    st.integers(0, len(EDITS) - 1),
    st.sampled_from([1, 1, 2]),
    st.booleans(),
    st.integers(0, 4),
)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(REQUESTS, min_size=3, max_size=8), st.integers(1, 3))
def test_any_order_of_requests_gives_each_what_it_gets_without_reuse(
    model, tokenizer, requests, num_slots
):
    engine = Engine(model, tokenizer, num_slots=num_slots, token_budget=15, make_plan=make_plan)
    submitted = []
    for begin, rest, place, n, is_drafted, num_steps in requests:
        prompt = [*begin, *rest]
        options = dataclasses.replace(GREEDY, n=n, temperature=0.7, seed=place, max_new_tokens=4)
        inspect = steer(model.config, prompt, EDITS[place])
        drafter = engine.prompt_lookup if is_drafted else None
        request = engine.submit(prompt, options, inspect=inspect, drafter=drafter)
        submitted.append((request, prompt, options, inspect))
        for _ in range(num_steps):
            engine.step()
    engine.run()
    for request, prompt, options, inspect in submitted:
        plain = Engine(model, tokenizer, make_plan=make_plan, reuses_prefixes=False)
        alone = plain.submit(prompt, options, inspect=inspect).result()
        for ours, theirs in zip(request.result(), alone, strict=True):
            assert ours.token_ids == theirs.token_ids
            for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
                assert a.logprob == pytest.approx(b.logprob, abs=1e-9)
