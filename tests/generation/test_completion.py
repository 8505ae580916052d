import dataclasses

import pytest
import torch

from phiscope.activations.capture import make_step_plan, plan_capture
from phiscope.activations.edits import Add
from phiscope.activations.inspection import Inspection
from phiscope.activations.points import Point, resolve_points
from phiscope.generation.engine import Engine
from phiscope.generation.options import GenerationOptions
from phiscope.packing import pack

PROMPT = [72, 101, 108, 108, 111]
SAMPLED = GenerationOptions(max_new_tokens=9, temperature=1.0, seed=7)
EVERY = "embeddings, resid_pre.0, q.1, k_rot.0, z.1, mlp_act.0, resid_post.[:], final_norm, logits"
MAPS = "attn_scores.1, attn_probs.[:]"


def make_plan(packed, inspections, logit_rows):
    return make_step_plan(packed, inspections, logit_rows=logit_rows)


@pytest.fixture
def make_engine(model, tokenizer):
    def make(**kwargs):
        return Engine(model, tokenizer, make_plan=make_plan, **kwargs)

    return make


def inspect(spec, prompt=PROMPT, edits=()):
    points = resolve_points(spec, 2) if spec else ()
    return Inspection(tuple(points), tuple(edits), len(prompt))


@pytest.fixture
def whole_states(model):
    """The rows of a sequence at points, from one forward."""

    def run(ids, spec):
        tokens, packed = pack([ids])
        plan = plan_capture(packed, resolve_points(spec, 2), whole=True)
        model(tokens, packed, plan=plan)
        return plan.rows(0)

    return run


def check_states(completion, prompt, expected):
    ids = prompt + completion.token_ids
    assert [label.position for label in completion.labels] == list(range(len(ids)))
    assert [label.token_id for label in completion.labels] == ids
    phases = ["prompt"] * len(prompt) + ["completion"] * len(completion.token_ids)
    assert [label.phase for label in completion.labels] == phases
    assert completion.states.keys() == expected.keys()
    for name, rows in expected.items():
        torch.testing.assert_close(completion.states[name], rows, atol=1e-9, rtol=0)


@pytest.mark.parametrize("token_budget", [1, 3, 100])
def test_states_equal_those_of_the_whole_forward(token_budget, make_engine, whole_states):
    engine = make_engine(num_slots=1, token_budget=token_budget)
    spec = f"{EVERY}, {MAPS}"
    (completion,) = engine.submit(PROMPT, SAMPLED, inspect=inspect(spec)).result()
    check_states(completion, PROMPT, whole_states(PROMPT + completion.token_ids, spec))


def test_capturing_changes_no_token(make_engine, generate):
    engine = make_engine(num_slots=3)
    requests = [engine.submit(PROMPT, SAMPLED, inspect=i) for i in (inspect(EVERY), None)]
    expected = generate(PROMPT, SAMPLED)[0].token_ids
    assert [request.result()[0].token_ids for request in requests] == [expected] * 2


@pytest.mark.parametrize("num_slots", [1, 3])
def test_each_of_n_completions_has_all_its_rows(num_slots, make_engine, whole_states):
    engine = make_engine(num_slots=num_slots)
    options = dataclasses.replace(SAMPLED, n=3)
    spec = f"resid_post.0, {MAPS}"
    completions = engine.submit(PROMPT, options, inspect=inspect(spec)).result()
    for completion in completions:
        check_states(completion, PROMPT, whole_states(PROMPT + completion.token_ids, spec))
    assert engine.scheduler.num_free_slots == num_slots


def test_stopped_completion_has_a_row_for_its_last_token(make_engine, whole_states):
    options = dataclasses.replace(SAMPLED, logit_bias={256: 1e3})
    (ended,) = make_engine().submit(PROMPT, options, inspect=inspect("resid_post.1")).result()
    assert ended.token_ids == [256]
    check_states(ended, PROMPT, whole_states([*PROMPT, 256], "resid_post.1"))


def test_row_of_the_last_place_of_the_context_is_there(make_engine, whole_states):
    engine = make_engine(num_slots=1, context=8)
    options = dataclasses.replace(SAMPLED, max_new_tokens=3)
    (full,) = engine.submit(PROMPT, options, inspect=inspect("final_norm")).result()
    check_states(full, PROMPT, whole_states(PROMPT + full.token_ids, "final_norm"))
    assert len(full.labels) == 8


def test_prompt_of_embeddings_has_labels_without_ids(model, make_engine, whole_states):
    embeddings = model.model.embed_tokens.weight[PROMPT]
    engine = make_engine()
    (completion,) = engine.submit(embeddings, SAMPLED, inspect=inspect("resid_post.1")).result()
    assert [label.token_id for label in completion.labels] == [None] * 5 + completion.token_ids
    expected = whole_states(PROMPT + completion.token_ids, "resid_post.1")["resid_post.1"]
    torch.testing.assert_close(completion.states["resid_post.1"], expected)


def test_cancelled_completion_has_labels_for_the_rows_there_are(make_engine):
    engine = make_engine(num_slots=1, token_budget=4)
    request = engine.submit(PROMPT, SAMPLED, inspect=inspect(f"q.0, {MAPS}"))
    counts = []
    for _ in range(4):
        (now,) = request.completions
        counts.append(len(now.labels))
        assert all(len(x) == len(now.labels) for x in [now.states.get("q.0", [])])
        engine.step()
    request.cancel()
    (cancelled,) = request.result()
    assert counts == [0, 4, 5, 6]
    assert len(cancelled.labels) == len(cancelled.states["q.0"]) == 7
    assert cancelled.states["attn_probs.0"].shape == (4, 7, 7)


def test_steering_one_request_leaves_its_neighbours_alone(make_engine, generate):
    engine = make_engine(num_slots=3)
    edit = Add(Point("resid_post", 0), torch.randn(32, generator=torch.Generator().manual_seed(0)))
    steered = engine.submit(PROMPT, SAMPLED, inspect=inspect("", edits=[edit]))
    plain = engine.submit(PROMPT, SAMPLED)
    expected = generate(PROMPT, SAMPLED)[0].token_ids
    assert plain.result()[0].token_ids == expected != steered.result()[0].token_ids
    assert steered.result()[0].states == {}


def test_edits_of_the_completion_start_after_the_prompt(make_engine, whole_states):
    vector = torch.ones(32)
    edit = Add(Point("resid_post", 1), vector, phase="completion")
    engine = make_engine(num_slots=1, token_budget=3)
    (completion,) = engine.submit(
        PROMPT, SAMPLED, inspect=inspect("resid_post.1", edits=[edit])
    ).result()
    plain = whole_states(PROMPT + completion.token_ids, "resid_post.1")["resid_post.1"]
    plain[len(PROMPT) :] += 1
    torch.testing.assert_close(completion.states["resid_post.1"], plain)


def test_inspection_that_cannot_be_served_is_refused(model, make_engine):
    with pytest.raises(ValueError, match="without make_plan"):
        Engine(model).submit(PROMPT, SAMPLED, inspect=inspect("q.0"))
    with pytest.raises(ValueError, match="a prompt of 5 tokens, and this one has 2"):
        make_engine().submit(PROMPT[:2], SAMPLED, inspect=inspect("q.0"))
