"""What the decoding loop captures and changes, against one forward over the finished text."""

import pytest
import torch

from phiscope.activations.capture import make_step_plan, plan_capture
from phiscope.activations.edits import Add, Knockout, Transform
from phiscope.activations.inspection import Inspection, make_inspection
from phiscope.activations.points import Point, resolve_points
from phiscope.errors import NonFiniteError
from phiscope.generation.engine import Engine
from phiscope.generation.options import GenerationOptions
from phiscope.packing import pack

STREAM = Point("resid_post", 1)
VECTOR = 50.0 * torch.arange(64.0).cos()
OPTIONS = GenerationOptions(max_new_tokens=5, ignore_eos=True)


def generate(model, prompts, inspections):
    """All at once, in chunks of few tokens."""
    engine = Engine(model, make_plan=make_step_plan, num_slots=4, token_budget=6)
    requests = [
        engine.submit(prompt, OPTIONS, inspect=inspection)
        for prompt, inspection in zip(prompts, inspections, strict=True)
    ]
    engine.run()
    return requests


def forward(model, ids, points):
    tokens, packed = pack([ids])
    plan = plan_capture(packed, resolve_points(points, 3), whole=True)
    model(tokens, packed, plan=plan)
    return plan.rows(0)


def test_states_captured_while_generating_equal_those_of_one_forward(model, ids):
    points = "embeddings, z.[:], attn_probs.1, attn_scores.2, resid_pre.2, resid_post.-1, logits"
    wanted = [make_inspection(model.config, points), None, make_inspection(model.config, "q.0")]
    requests = generate(model, ids, wanted)
    (completion,) = requests[0].result()
    expected = forward(model, ids[0] + completion.token_ids, points)
    assert list(completion.states) == list(expected)
    for name, rows in completion.states.items():
        assert rows.shape == expected[name].shape
        assert torch.equal(rows.isneginf(), expected[name].isneginf())
        assert (rows - expected[name]).nan_to_num().abs().max() < 1e-10, name
    assert list(requests[2].result()[0].states) == ["q.0"]
    assert requests[1].result()[0].states == {}


def test_steering_one_request_leaves_its_neighbours_tokens_alone(model, ids):
    steering = Inspection(edits=(Add(STREAM, VECTOR),))
    plain = [r.result()[0].token_ids for r in generate(model, ids, [None, None, None])]
    mixed = [r.result()[0].token_ids for r in generate(model, ids, [None, steering, None])]
    alone = generate(model, ids[1:2], [steering])[0].result()[0].token_ids
    assert mixed[::2] == plain[::2]
    assert mixed[1] == alone != plain[1]


def test_edits_of_the_completion_start_at_its_first_token(model, ids):
    """So the token that the prompt's last row makes is the one of an unsteered prompt."""
    prompt = ids[0]
    edit = Add(STREAM, VECTOR, phase="completion")
    inspection = make_inspection(model.config, "resid_post.1", [edit], prompt_length=len(prompt))
    (completion,) = generate(model, [prompt], [inspection])[0].result()
    (plain,) = generate(model, [prompt], [None])[0].result()
    rows = forward(model, prompt + completion.token_ids, "resid_post.1")["resid_post.1"]
    steered = completion.states["resid_post.1"]
    assert completion.token_ids[0] == plain.token_ids[0]
    assert (steered[:7] - rows[:7]).abs().max() < 1e-10
    assert (steered[7:8] - rows[7:8] - VECTOR).abs().max() < 1e-10


def test_a_knock_out_holds_for_every_new_token(model, ids):
    edit = Knockout(Point("attn_probs", 1), keys=(2,))
    inspection = make_inspection(model.config, "attn_probs.1", [edit])
    (completion,) = generate(model, ids[:1], [inspection])[0].result()
    probs = completion.states["attn_probs.1"]
    assert probs.shape == (4, 12, 12)
    assert not probs[:, :, 2].any()


@pytest.mark.parametrize(
    "edit",
    [
        Transform(STREAM, lambda rows, places: rows / 0),
        Transform(STREAM, lambda rows, places: rows[:0]),
    ],
    ids=["infinities", "lost rows"],
)
def test_fault_50_an_edit_that_goes_wrong_fails_only_its_own_request(model, ids, edit):
    requests = generate(model, ids, [None, Inspection((STREAM,), (edit,)), None])
    plain = [r.result()[0].token_ids for r in generate(model, ids, [None, None, None])]
    with pytest.raises((NonFiniteError, ValueError), match=r"resid_post\.1|logits"):
        requests[1].result()
    assert [requests[i].result()[0].token_ids for i in (0, 2)] == plain[::2]


def test_an_inspection_of_nothing_is_empty(model):
    assert make_inspection(model.config) == Inspection()
