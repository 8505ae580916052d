"""Whatever the mix of requests, each gets what it would get alone."""

import random

import pytest
import torch

from phiscope.activations.capture import make_step_plan
from phiscope.activations.inspection import Inspection
from phiscope.activations.points import resolve_points
from phiscope.generation.engine import Engine
from phiscope.generation.options import GenerationOptions

SPECS = ("", "resid_post.1, z.0", "embeddings, attn_probs.1, logits")


def make_plan(packed, inspections, logit_rows):
    return make_step_plan(packed, inspections, logit_rows=logit_rows)


def draw_request(rng):
    prompt = [rng.randrange(264) for _ in range(rng.choice((1, 2, 5, 17, 30)))]
    options = GenerationOptions(
        max_new_tokens=rng.randint(1, 12),
        temperature=rng.choice((0.0, 0.8, 1.5)),
        top_k=rng.choice((None, 5, 50)),
        top_p=rng.choice((None, 0.9)),
        min_p=rng.choice((None, 0.05)),
        repetition_penalty=rng.choice((1.0, 1.3)),
        presence_penalty=rng.choice((0.0, 0.7)),
        frequency_penalty=rng.choice((0.0, 0.4)),
        logit_bias=rng.choice(({}, {65: 3.0, 256: 2.0})),
        seed=rng.randrange(100),
        n=rng.choice((1, 1, 1, 2, 4)),
        stop=rng.choice(((), ("A",), ("\ufffd\ufffd",))),
        logprobs=rng.choice((None, 2)),
        echo=rng.random() < 0.3,
    )
    spec = rng.choice(SPECS)
    points = tuple(resolve_points(spec, 2)) if spec else ()
    return prompt, options, Inspection(points, (), len(prompt)) if spec else None


def check_equal(mixed, alone):
    assert mixed.token_ids == alone.token_ids
    assert (mixed.text, mixed.stop_reason) == (alone.text, alone.stop_reason)
    assert (mixed.finish_reason, mixed.labels) == (alone.finish_reason, alone.labels)
    for name, rows in alone.states.items():
        torch.testing.assert_close(mixed.states[name], rows, atol=1e-9, rtol=1e-9)
    for ours, theirs in ((mixed.logprobs, alone.logprobs),) if alone.logprobs else ():
        assert [e.logprob for e in ours] == pytest.approx([e.logprob for e in theirs], abs=1e-9)


def check_begins(cancelled, alone):
    """What a cancelled completion has is the beginning of the whole one."""
    assert cancelled.token_ids == alone.token_ids[: len(cancelled.token_ids)]
    assert cancelled.labels == alone.labels[: len(cancelled.labels)]
    for name, rows in cancelled.states.items():
        if not name.startswith("attn"):
            expected = alone.states[name][: len(rows)]
            torch.testing.assert_close(rows, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_any_mix_gives_each_request_what_it_gets_alone(seed, model, tokenizer):
    rng = random.Random(seed)
    num_slots = rng.randint(1, 5)
    engine = Engine(
        model,
        tokenizer,
        num_slots=num_slots,
        token_budget=num_slots + rng.choice((0, 1, 3, 20, 200)),
        make_plan=make_plan,
    )
    coming = [draw_request(rng) for _ in range(9)]
    requests, cancelled = [], set()
    while coming or engine.step():
        while coming and rng.random() < 0.4:
            prompt, options, inspect = coming.pop()
            requests.append(
                (engine.submit(prompt, options, inspect=inspect), prompt, options, inspect)
            )
        if requests and rng.random() < 0.06:
            request = rng.choice(requests)[0]
            if not request.is_done:
                request.cancel()
                cancelled.add(request)
        if coming:
            engine.step()
        running = len(engine.scheduler.running)
        assert engine.scheduler.num_free_slots == num_slots - running
    assert engine.scheduler.num_free_slots == num_slots
    assert len(requests) == 9
    for request, prompt, options, inspect in requests:
        alone = Engine(model, tokenizer, num_slots=4, make_plan=make_plan)
        expected = alone.submit(prompt, options, inspect=inspect).result()
        for ours, theirs in zip(request.result(), expected, strict=True):
            check = check_begins if request in cancelled else check_equal
            check(ours, theirs)
