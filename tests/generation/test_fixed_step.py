"""Recorded steps give what plain ones give, whoever joins and leaves. The recorder is a CPU's."""

import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import record

from phiscope.activations.capture import make_step_plan
from phiscope.activations.edits import Ablate, Add, Scale
from phiscope.activations.fixed_plan import FixedPlans
from phiscope.activations.inspection import make_inspection
from phiscope.activations.points import Point
from phiscope.generation.engine import Engine
from phiscope.generation.fixed_step import MOST_STEPS, PATIENCE, Replay, count_spare_slots
from phiscope.generation.options import GenerationOptions

GREEDY = {"ignore_eos": True, "max_new_tokens": 8}
POINTS = ["", "resid_post.1", "embeddings, z.0, mlp_pre.1, q.0, q_rot.1", "final_norm, logits"]
MAPS = "attn_probs.1"
ADDED = {
    "nothing": (),
    "all": (Add(Point("resid_post", 0), torch.linspace(-2, 2, 32).double()),),
    "two places": (
        Add(Point("resid_post", 1), torch.linspace(-1, 1, 32).double(), scale=3.0),
        Add(Point("z", 0), torch.linspace(0, 1, 32).double().view(4, 8)),
    ),
    "completion": (Add(Point("attn_out", 0), torch.ones(32).double(), phase="completion"),),
    "some": (Add(Point("mlp_out", 1), torch.ones(32).double(), positions=(4, 6, 9)),),
    "logits": (Add(Point("logits"), torch.linspace(0, 9, 264).double()),),
}


def make_engine(model, *, replay=True, num_slots=4, **kwargs):
    return Engine(
        model,
        num_slots=num_slots,
        num_tokens=257,
        make_plan=make_step_plan,
        replay=Replay(record=record, plans=FixedPlans(), least_places=8) if replay else None,
        **kwargs,
    )


def submit(engine, prompt, inspect=None, **options):
    given = GenerationOptions(**{**GREEDY, **options})
    return engine.submit(prompt, given, inspect=inspect)


def inspect_of(engine, prompt, points, edits):
    if not points and not edits:
        return None
    return make_inspection(engine.limits.config, points or (), edits, prompt_length=len(prompt))


def check_equal(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.states.keys() == theirs.states.keys()
        for name, rows in theirs.states.items():
            torch.testing.assert_close(ours.states[name], rows, rtol=1e-9, atol=1e-9)


def test_all_steps_but_the_first_few_are_replays(model):
    replays = []

    def count(work):
        replay = record(work)
        return lambda: replays.append(replay())

    engine = Engine(model, num_tokens=257, replay=Replay(record=count, least_places=64))
    ids = submit(engine, [1, 2, 3], max_new_tokens=20).result()[0].token_ids
    assert engine.fixed_steps.num_runs == 19
    assert len(replays) == 19 - PATIENCE
    assert (
        ids
        == submit(make_engine(model, replay=False), [1, 2, 3], max_new_tokens=20)
        .result()[0]
        .token_ids
    )


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_any_mix_gives_each_request_what_plain_steps_give(model, seed):
    rng = random.Random(seed)
    num_slots = rng.choice((1, 2, 3, 5))
    engine = make_engine(model, num_slots=num_slots)
    pairs = []
    coming = rng.randint(3, 8)
    while coming or engine.step():
        if coming and rng.random() < 0.5:
            coming -= 1
            pairs.append(_submit_drawn(rng, engine, model))
        if coming:
            engine.step()
    for request, plain in pairs:
        check_equal(request.result(), plain.result())


def _submit_drawn(rng, engine, model):
    prompt = [rng.randrange(257) for _ in range(rng.randint(1, 12))]
    points = rng.choice([*POINTS, "", "", MAPS])
    edits = ADDED[rng.choice(["nothing", "nothing", *ADDED])]
    options = {
        "max_new_tokens": rng.randint(1, 20),
        "temperature": rng.choice((0.0, 0.0, 1.0)),
        "repetition_penalty": rng.choice((1.0, 1.0, 1.3)),
        "seed": rng.randrange(9),
        "n": rng.choice((1, 1, 2)),
        "logprobs": rng.choice((None, None, 1)),
    }
    plain = make_engine(model, replay=False)
    return tuple(
        submit(one, prompt, inspect_of(one, prompt, points, edits), **options)
        for one in (engine, plain)
    )


@pytest.mark.parametrize("edits", ADDED.values(), ids=ADDED)
@pytest.mark.parametrize("points", POINTS)
def test_what_is_kept_and_steered_is_what_plain_steps_keep_and_steer(model, points, edits):
    engine, plain = make_engine(model), make_engine(model, replay=False)
    found, wanted = (
        submit(one, [5, 6, 7], inspect_of(one, [5, 6, 7], points, edits)).result()
        for one in (engine, plain)
    )
    assert engine.fixed_steps.num_runs == 7 + bool(points)  # the last token is run for its rows
    check_equal(found, wanted)


@pytest.mark.parametrize(
    ("points", "edits"),
    [
        (MAPS, ()),
        ("attn_entropy.0", ()),
        ("resid_post.0", (Scale(Point("mlp_out", 1), 0.5),)),
        ("resid_post.0", (Ablate(Point("resid_post", 1), torch.ones(32).double()),)),
        ("", 2 * (Add(Point("resid_post", 0), torch.ones(32).double()),)),
    ],
)
def test_what_cannot_be_recorded_is_run_plainly(model, points, edits):
    engine, plain = make_engine(model), make_engine(model, replay=False)
    found, wanted = (
        submit(one, [5, 6, 7], inspect_of(one, [5, 6, 7], points, edits)).result()
        for one in (engine, plain)
    )
    assert engine.fixed_steps.num_runs == 0
    check_equal(found, wanted)


def test_a_vector_that_changes_on_the_way_is_read_anew(model):
    vector = torch.zeros(32).double()
    edit = Add(Point("resid_post", 0), vector)
    found = []
    for replay in (True, False):
        vector.zero_()
        engine = make_engine(model, replay=replay)
        request = submit(engine, [5, 6], inspect_of(engine, [5, 6], "resid_post.0", (edit,)))
        for step in range(6):
            engine.step()
            vector.numpy()[:] = step
        found.append(request.result())
    check_equal(*found)


@pytest.mark.parametrize("change", ["write", "replace", "swap", "hook", "function", "module"])
def test_a_model_that_changes_on_the_way_is_seen_at_once(model, change):
    found = []
    for replay in (True, False):
        ours = copy.deepcopy(model)
        engine = make_engine(ours, replay=replay, reuses_prefixes=False)
        request = submit(engine, [5, 6, 7], max_new_tokens=12)
        for _ in range(6):
            engine.step()
        _change(ours, change)
        found.append(request.result())
    check_equal(*found)
    before = submit(make_engine(model), [5, 6, 7], max_new_tokens=12).result()
    assert found[0][0].token_ids != before[0].token_ids


def _change(model, change):
    block = model.model.layers[1]
    fc2 = block.mlp.fc2
    if change == "write":
        fc2.weight.mul_(-3)
    if change == "replace":
        fc2.weight = torch.nn.Parameter(-3 * fc2.weight, requires_grad=False)
    if change == "swap":
        fc2.weight.data = -3 * fc2.weight.data
    if change == "hook":
        block.register_forward_hook(lambda module, args, output: output.flip(-1))
    if change == "function":
        block.mlp.activation = torch.cos
    if change == "module":
        block.mlp = copy.deepcopy(model.model.layers[0].mlp)


def test_a_recording_that_fails_is_said_and_costs_no_request(model):
    def refuse(work):
        raise RuntimeError("operation not permitted")

    engine = Engine(model, num_tokens=257, replay=Replay(record=refuse))
    request = submit(engine, [1, 2, 3])
    with pytest.warns(RuntimeWarning, match=r"without recorded steps.*operation not permitted"):
        found = request.result()
    assert not engine.fixed_steps.is_on
    check_equal(found, submit(make_engine(model, replay=False), [1, 2, 3]).result())


def test_logits_that_are_no_numbers_fail_their_request_alone(model):
    engine = make_engine(model)
    hot = (
        Add(
            Point("resid_post", 1),
            torch.full((32,), 1e308, dtype=torch.float64),
            phase="completion",
        ),
    )
    spoilt = submit(engine, [1, 2], inspect_of(engine, [1, 2], "", hot))
    sound = submit(engine, [1, 2, 3])
    engine.run()
    with pytest.raises(Exception, match="NaN or an"):
        spoilt.result()
    check_equal(sound.result(), submit(make_engine(model, replay=False), [1, 2, 3]).result())


def test_steps_can_be_switched_off_and_on(model):
    engine = make_engine(model)
    engine.fixed_steps.is_on = False
    submit(engine, [1, 2, 3]).result()
    assert engine.fixed_steps.num_runs == 0
    engine.fixed_steps.is_on = True
    submit(engine, [1, 2, 3]).result()
    assert engine.fixed_steps.num_runs == 7


def test_recordings_are_bounded(model):
    engine = make_engine(model, num_slots=1)
    for scale in range(MOST_STEPS + 3):
        point = [Point("resid_post", 0), Point("z", 1), Point("logits")][: 1 + scale % 3]
        names = ", ".join(map(str, point)) + f", mlp_out.{scale % 2}, q.{scale // 2 % 2}"
        inspect = inspect_of(engine, [1, 2], f"{names}, ln_out.{scale // 4 % 2}", ())
        submit(engine, [1, 2], inspect, max_new_tokens=3).result()
        assert len(engine.fixed_steps._steps) <= MOST_STEPS


@pytest.mark.parametrize(("num_slots", "spare"), [(1, 0), (2, 0), (3, 1), (4, 1), (8, 1)])
def test_a_slot_is_spared_where_batches_are_filled_up(num_slots, spare):
    assert count_spare_slots(num_slots) == spare
