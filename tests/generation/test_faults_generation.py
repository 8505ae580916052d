"""Faults that the decoding loop survives: each is refused or fails its own request alone."""

import dataclasses
import math

import pytest
import torch
from oracle import make_model

from phiscope.activations.capture import make_step_plan, plan_capture
from phiscope.activations.edits import Transform
from phiscope.activations.inspection import Inspection
from phiscope.activations.points import Point, resolve_points
from phiscope.errors import ContextLengthError, NonFiniteError
from phiscope.generation.engine import Engine
from phiscope.generation.options import GenerationOptions
from phiscope.packing import pack

PROMPT = [72, 101, 108, 108, 111]
GREEDY = GenerationOptions(max_new_tokens=8)
SAMPLED = dataclasses.replace(GREEDY, temperature=1.0, seed=5)
BROKEN = 200
"""A token whose embedding is NaN in `broken_model`."""


def make_plan(packed, inspections, logit_rows):
    return make_step_plan(packed, inspections, logit_rows=logit_rows)


@pytest.fixture
def broken_model(config):
    model = make_model(config)
    model.model.embed_tokens.weight[BROKEN] = math.nan
    return model


@pytest.mark.parametrize("wrong", [-1, 264, 2**63])
def test_fault_13_id_outside_the_embedding_is_refused_with_its_place(wrong, engine):
    with pytest.raises(ValueError, match=rf"token id {wrong} at place 2 .* 0 to 263"):
        engine.submit([1, 2, wrong, 4], GREEDY)


@pytest.mark.parametrize("wrong", [[1, 2.0], ["1"], [None]])
def test_fault_13_what_is_no_id_is_refused(wrong, engine):
    with pytest.raises(TypeError):
        engine.submit(wrong, GREEDY)


def test_fault_13_spare_ids_are_read_but_never_sampled(config, tokenizer):
    model = make_model(config)
    model.lm_head.bias[257:] = 1e3
    engine = Engine(model, tokenizer)
    options = dataclasses.replace(SAMPLED, n=3, echo=True, logprobs=3, repetition_penalty=1.2)
    for completion in engine.submit([65, 260, 66], options).result():
        assert completion.text.startswith("AB")
        assert max(completion.token_ids) < 257
        entries = completion.prompt_logprobs[1:] + completion.logprobs
        assert all(token_id < 257 for entry in entries for token_id, _ in entry.top)
    for biased in ({"logit_bias": {260: 5.0}}, {"stop_token_ids": (260,)}, {"logprobs": 258}):
        with pytest.raises(ValueError, match=r"25[67]"):
            engine.submit(PROMPT, GenerationOptions(max_new_tokens=1, **biased))


def test_fault_13_empty_prompt_is_refused(engine):
    with pytest.raises(ValueError, match="no tokens"):
        engine.submit([], GREEDY)


@pytest.mark.parametrize(
    "embeddings",
    [torch.zeros(0, 32), torch.zeros(3, 31), torch.zeros(32), torch.full((2, 32), math.nan)],
)
def test_fault_13_embeddings_that_cannot_be_are_refused(embeddings, engine):
    with pytest.raises(ValueError, match="prompt embeddings"):
        engine.submit(embeddings, GREEDY)


def test_fault_14_too_long_is_an_error_with_both_counts(engine):
    with pytest.raises(ContextLengthError, match=r"60 tokens .*max_new_tokens=8 .*68 .*of 64"):
        engine.submit([1] * 60, GREEDY)
    assert engine.scheduler.is_idle


@pytest.mark.parametrize(
    "settings",
    [{"top_p": 0.0}, {"temperature": -1.0}, {"min_p": 2.0}, {"max_new_tokens": 0}, {"top_k": -1}],
)
def test_fault_15_contradictions_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        GenerationOptions(**settings)


def test_fault_15_all_tokens_banned_is_refused_at_the_call(engine):
    banned = dict.fromkeys(range(257), -math.inf)
    with pytest.raises(ValueError, match="bans all tokens"):
        engine.submit(PROMPT, dataclasses.replace(GREEDY, logit_bias=banned))
    del banned[65]
    one_left = dataclasses.replace(SAMPLED, logit_bias=banned)
    assert engine.submit(PROMPT, one_left).result()[0].token_ids == [65] * 8


def test_fault_15_bias_that_overflows_fails_its_request_alone(engine, generate):
    failing = engine.submit(PROMPT, dataclasses.replace(SAMPLED, frequency_penalty=-1.7e308))
    sound = engine.submit(PROMPT, SAMPLED)
    with pytest.raises(ValueError, match="leave no token to sample, or overflow"):
        failing.result()
    assert failing.completions[0].finish_reason == "error"
    assert sound.result()[0].token_ids == generate(PROMPT, SAMPLED)[0].token_ids


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("cd", "b"),
        ("\u20ac", "bcd"),
        ("d\u20ac", "bc"),
        ("\u20ace\U0001f600", "bcd"),
        ("\U0001f600f", "bcd\u20ace"),
        ("x", "bcd\u20ace\U0001f600fg"),
    ],
)
def test_fault_16_stop_over_several_tokens_cuts_exactly(stop, text, make_chain_engine):
    engine = make_chain_engine("abcd\u20ace\U0001f600fg")
    options = GenerationOptions(max_new_tokens=13, stop=(stop,))
    request = engine.submit([ord("a")], options)
    assert "".join(piece.text for piece in request.pieces()) == text
    (completion,) = request.result()
    assert completion.text == text
    if stop == "x":
        assert completion.finish_reason == "length"
    else:
        said = bytes(completion.token_ids).decode()
        assert said == text + stop  # every token sampled is told, and none after the stop
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)


@pytest.mark.parametrize("seed", range(8))
def test_fault_16_stopped_text_equals_the_unstopped_text_cut(seed, tokenizer, generate):
    letters = tokenizer.encode("ab\u20ac ")
    only = {token_id: -math.inf for token_id in range(257) if token_id not in letters}
    options = GenerationOptions(
        max_new_tokens=50, temperature=3.0, seed=seed, logit_bias=only, stop=()
    )
    whole = generate(PROMPT, options)[0].text
    for stop in ("\u20ac", "ab", "b\ufffd", "\ufffd\ufffd", " a", "\u20aca"):
        (cut,) = generate(PROMPT, dataclasses.replace(options, stop=(stop,)))
        assert cut.text == whole.partition(stop)[0]


def test_fault_16_empty_stop_is_refused():
    with pytest.raises(ValueError, match="must not be empty"):
        GenerationOptions(stop=("a", ""))


class Faulty:
    """A stop rule with a fault."""

    def find(self, text, start):
        raise RuntimeError("a rule with a fault")

    def holdback(self, text):
        return 0


def test_fault_29_rule_that_raises_fails_its_request_alone(make_chain_engine):
    engine = make_chain_engine(b"a\xe2\xc3bcdef")  # the fault comes inside a character
    failing = engine.submit([ord("a")], dataclasses.replace(GREEDY, stop_rules=(Faulty(),)))
    sound = engine.submit([ord("b")], dataclasses.replace(GREEDY, max_new_tokens=4))
    with pytest.raises(RuntimeError, match="a rule with a fault"):
        failing.result()
    assert failing.completions[0].token_ids == [0xE2, 0xC3]
    assert sound.result()[0].text == "cdef"
    assert engine.scheduler.num_free_slots == 8


def test_fault_29_forward_that_fails_for_one_request_fails_it_alone(model, tokenizer, generate):
    def fail(rows, positions):
        if max(positions) >= 7:
            raise RuntimeError("an edit with a fault")
        return rows

    engine = Engine(model, tokenizer, num_slots=3, make_plan=make_plan)
    edits = (Transform(Point("resid_post", 0), fail),)
    before = engine.submit(PROMPT[:2], SAMPLED)
    failing = engine.submit(PROMPT, SAMPLED, inspect=Inspection((), edits, 5))
    after = engine.submit(PROMPT, dataclasses.replace(SAMPLED, n=2))
    with pytest.raises(RuntimeError, match="an edit with a fault"):
        list(failing.pieces())
    assert len(failing.completions[0].token_ids) == 3
    assert before.result()[0].token_ids == generate(PROMPT[:2], SAMPLED)[0].token_ids
    assert after.result()[0].token_ids == generate(PROMPT, SAMPLED)[0].token_ids
    assert engine.scheduler.num_free_slots == 3


def test_fault_29_engine_lives_on_after_a_step_that_fails_for_all(model, tokenizer, generate):
    def refuse(packed, inspections, logit_rows):
        raise RuntimeError("no plan")

    engine = Engine(model, tokenizer, num_slots=2, make_plan=refuse)
    inspected = [engine.submit(PROMPT, SAMPLED, inspect=Inspection((), (), 5)) for _ in range(5)]
    engine.run()
    for request in inspected:
        with pytest.raises(RuntimeError, match="no plan"):
            request.result()
    assert engine.scheduler.num_free_slots == 2
    sound = engine.submit(PROMPT, SAMPLED)
    assert sound.result()[0].token_ids == generate(PROMPT, SAMPLED)[0].token_ids


def test_fault_29_interrupt_cancels_what_runs_and_nothing_hangs(model, tokenizer, generate):
    def interrupt(rows, positions):
        raise KeyboardInterrupt

    engine = Engine(model, tokenizer, num_slots=2, make_plan=make_plan)
    edits = (Transform(Point("resid_post", 0), interrupt),)
    running = engine.submit(PROMPT, SAMPLED)
    interrupted = engine.submit(PROMPT, SAMPLED, inspect=Inspection((), edits, 5))
    waiting = engine.submit(PROMPT, SAMPLED)
    with pytest.raises(KeyboardInterrupt):
        interrupted.result()
    for request in (running, interrupted):
        assert request.is_done
        assert request.result()[0].finish_reason == "cancelled"
    assert waiting.result()[0].token_ids == generate(PROMPT, SAMPLED)[0].token_ids


def test_fault_50_nan_fails_its_request_alone_and_its_slot_serves_again(broken_model, tokenizer):
    def run(*prompts):
        engine = Engine(broken_model, tokenizer, num_slots=2, token_budget=4)
        return [engine.submit(prompt, SAMPLED) for prompt in prompts], engine

    requests, engine = run(PROMPT, [72, BROKEN, 3], PROMPT[::-1], [BROKEN], PROMPT * 2)
    engine.run()
    for broken in (requests[1], requests[3]):
        with pytest.raises(NonFiniteError, match="NaN or an infinity"):
            broken.result()
        assert broken.completions[0].token_ids == []
    for sound in (requests[0], requests[2], requests[4]):
        (alone,), _ = run(sound.task.prompt.ids)
        assert sound.result()[0].token_ids == alone.result()[0].token_ids
    assert engine.scheduler.num_free_slots == 2


def test_fault_50_nan_after_some_tokens_keeps_them(broken_model, tokenizer):
    engine = Engine(broken_model, tokenizer)
    biased = dataclasses.replace(SAMPLED, n=2, presence_penalty=1e4, logit_bias={65: 1e3})
    first = engine.submit(PROMPT, dataclasses.replace(biased, logit_bias={65: 2e3, BROKEN: 1e3}))
    second = engine.submit(PROMPT, biased)
    with pytest.raises(NonFiniteError):
        list(first.pieces())
    assert [c.token_ids for c in first.completions] == [[65, BROKEN]] * 2
    assert [c.finish_reason for c in first.completions] == ["error"] * 2
    assert [len(c.token_ids) for c in second.result()] == [8, 8]


def test_fault_50_captured_state_that_is_not_finite_fails_its_request_alone(model, tokenizer):
    def spoil(rows, positions):
        return torch.full_like(rows, math.inf) if 1 in positions else rows

    engine = Engine(model, tokenizer, make_plan=make_plan, token_budget=8)
    last = Point("final_norm")
    spoilt = Inspection((last,), (Transform(last, spoil, positions=(1,)),), 5)
    failing = engine.submit(PROMPT, SAMPLED, inspect=spoilt)
    sound = engine.submit(PROMPT, SAMPLED, inspect=Inspection((last,), (), 5))
    with pytest.raises(NonFiniteError, match="final_norm"):
        failing.result()
    assert len(sound.result()[0].states["final_norm"]) == 13


@pytest.fixture(scope="module")
def model_32(config):
    return make_model(config, dtype=torch.float32)


def rows_alone(model, ids, spec):
    tokens, packed = pack([ids])
    plan = plan_capture(packed, resolve_points(spec, 2), whole=True)
    with torch.no_grad():
        model(tokens, packed, plan=plan)
    return plan.rows(0)


SPEC = "embeddings, resid_post.[:], z.1, final_norm"


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(("num_slots", "token_budget"), [(1, 1), (1, 100), (3, 5), (8, 64)])
def test_fault_52_states_do_not_depend_on_the_batch(num_slots, token_budget, num_threads, model_32):
    engine = Engine(model_32, num_slots=num_slots, token_budget=token_budget, make_plan=make_plan)
    prompts = [PROMPT, [7], list(range(30, 60)), PROMPT * 2]
    points = tuple(resolve_points(SPEC, 2))
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        requests = [
            engine.submit(
                prompt,
                dataclasses.replace(SAMPLED, n=1 + place % 2),
                inspect=Inspection(points, (), len(prompt)),
            )
            for place, prompt in enumerate(prompts)
        ]
        engine.run()
    finally:
        torch.set_num_threads(before)
    for prompt, request in zip(prompts, requests, strict=True):
        for completion in request.result():
            expected = rows_alone(model_32, prompt + completion.token_ids, SPEC)
            for name, rows in expected.items():
                torch.testing.assert_close(completion.states[name], rows, rtol=1e-4, atol=1e-5)


def test_fault_52_prompts_of_one_token_are_exact(model_32):
    engine = Engine(model_32, make_plan=make_plan)
    inspection = Inspection(tuple(resolve_points(SPEC, 2)), (), 1)
    (completion,) = engine.submit([7], SAMPLED, inspect=inspection).result()
    for name, rows in rows_alone(model_32, [7], SPEC).items():
        assert torch.equal(completion.states[name][:1], rows)
