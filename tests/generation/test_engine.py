import dataclasses

import pytest
import torch
from oracle import make_model, make_peer

from phiscope.errors import ContextLengthError, UnsupportedError
from phiscope.generation.engine import Engine
from phiscope.generation.options import GenerationOptions
from phiscope.model import PhiForCausalLM

PROMPT = [72, 101, 108, 108, 111]
GREEDY = GenerationOptions(max_new_tokens=12)
SAMPLED = GenerationOptions(max_new_tokens=12, temperature=1.0, seed=7)


def test_greedy_equals_whole_forwards(generate, whole_logits):
    ids = list(PROMPT)
    for _ in range(GREEDY.max_new_tokens):
        ids.append(int(whole_logits(ids)[-1, :257].argmax()))
    (completion,) = generate(PROMPT, GREEDY)
    assert completion.token_ids == ids[len(PROMPT) :]
    assert completion.finish_reason == "length"


@pytest.mark.parametrize("name", ["model", "grouped_model"])
def test_greedy_equals_transformers(name, request):
    model = request.getfixturevalue(name)
    options = {"max_new_tokens": 20, "repetition_penalty": 1.4}
    (ours,) = Engine(model, num_slots=1).submit(PROMPT, GenerationOptions(**options)).result()
    prompt = torch.tensor([PROMPT])
    theirs = make_peer(model).generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        eos_token_id=256,
        pad_token_id=0,
        **options,
    )
    assert ours.token_ids == theirs[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("token_budget", [1, 2, 3, 100])
def test_chunked_prompt_equals_whole_prompt(token_budget, model, generate):
    prompt = list(range(40, 63))
    engine = Engine(model, num_slots=1, token_budget=token_budget)
    (chunked,) = engine.submit(prompt, GREEDY).result()
    assert chunked.token_ids == generate(prompt, GREEDY)[0].token_ids


def test_requests_together_equal_each_alone(engine, generate):
    requests = [
        (PROMPT, GREEDY),
        (PROMPT[:1], SAMPLED),
        (list(range(30, 60)), dataclasses.replace(SAMPLED, top_p=0.8, seed=3)),
        (PROMPT[::-1], dataclasses.replace(SAMPLED, presence_penalty=1.0, logit_bias={65: 4.0})),
        (PROMPT * 3, dataclasses.replace(SAMPLED, top_k=9, min_p=0.01, repetition_penalty=1.2)),
    ]
    together = [engine.submit(*request) for request in requests]
    engine.run()
    for request, (prompt, options) in zip(together, requests, strict=True):
        alone = generate(prompt, options)
        assert request.result()[0].token_ids == alone[0].token_ids
    assert engine.scheduler.num_free_slots == 3


def test_same_seed_gives_the_same_tokens_and_another_seed_others(generate):
    first, again = generate(PROMPT, SAMPLED), generate(PROMPT, SAMPLED)
    other = generate(PROMPT, dataclasses.replace(SAMPLED, seed=8))
    assert first[0].token_ids == again[0].token_ids != other[0].token_ids


def test_drawn_seed_repeats_the_request(engine):
    request = engine.submit(PROMPT, dataclasses.replace(SAMPLED, seed=None))
    tokens = request.result()[0].token_ids
    repeated = engine.submit(PROMPT, dataclasses.replace(SAMPLED, seed=request.seed))
    assert repeated.result()[0].token_ids == tokens


@pytest.mark.parametrize("num_slots", [1, 2, 3, 8])
def test_n_completions_do_not_depend_on_slots(num_slots, model):
    options = dataclasses.replace(SAMPLED, n=5)
    engine = Engine(model, num_slots=num_slots, token_budget=8)
    completions = engine.submit(PROMPT, options).result()
    reference = Engine(model, num_slots=5).submit(PROMPT, options).result()
    assert [c.token_ids for c in completions] == [c.token_ids for c in reference]
    assert [c.index for c in completions] == list(range(5))
    assert len({tuple(c.token_ids) for c in completions}) == 5
    assert engine.scheduler.num_free_slots == num_slots


def test_first_of_n_equals_the_only_one(generate):
    first, *_ = generate(PROMPT, dataclasses.replace(SAMPLED, n=3))
    assert first.token_ids == generate(PROMPT, SAMPLED)[0].token_ids


def test_embeddings_of_a_prompt_equal_its_ids(model, engine, generate):
    embeddings = model.model.embed_tokens.weight[PROMPT]
    requests = [
        engine.submit(embeddings, SAMPLED),
        engine.submit(PROMPT[:2], GREEDY),
        engine.submit(embeddings[:3], GREEDY),
    ]
    engine.run()
    expected = [(PROMPT, SAMPLED), (PROMPT[:2], GREEDY), (PROMPT[:3], GREEDY)]
    for request, (prompt, options) in zip(requests, expected, strict=True):
        assert request.result()[0].token_ids == generate(prompt, options)[0].token_ids


def test_logprobs_are_those_of_whole_forwards(generate, whole_logits):
    options = dataclasses.replace(SAMPLED, logprobs=3, echo=True, logit_bias={65: 3.0})
    (completion,) = generate(PROMPT, options)
    ids = PROMPT + completion.token_ids
    logprobs = whole_logits(ids).log_softmax(-1)
    found = completion.prompt_logprobs + completion.logprobs
    assert [entry.token_id for entry in found] == ids
    assert found[0].logprob is None
    for entry, row in zip(found[1:], logprobs, strict=False):
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-9)
        values, top_ids = row[:257].topk(3)
        assert [token_id for token_id, _ in entry.top] == top_ids.tolist()
        assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-9)


def test_prompt_is_scored_without_sampling(model, generate):
    prompt = list(range(40, 63))
    options = GenerationOptions(max_new_tokens=0, echo=True, logprobs=1)
    (whole,) = generate(prompt, options)
    engine = Engine(model, num_slots=1, token_budget=4)
    (chunked,) = engine.submit(prompt, options).result()
    assert (whole.token_ids, whole.logprobs, whole.finish_reason) == ([], [], "length")
    assert [e.token_id for e in whole.prompt_logprobs] == prompt
    assert [e.logprob for e in chunked.prompt_logprobs[1:]] == pytest.approx(
        [e.logprob for e in whole.prompt_logprobs[1:]], abs=1e-9
    )


def test_echo_puts_the_prompt_first(generate, tokenizer):
    (plain,) = generate(PROMPT, GREEDY)
    (echoed,) = generate(PROMPT, dataclasses.replace(GREEDY, echo=True))
    assert echoed.text == tokenizer.decode(PROMPT) + plain.text
    assert echoed.token_ids == plain.token_ids


def test_end_token_ends_and_is_no_text(generate):
    always = dataclasses.replace(GREEDY, logit_bias={256: 1e3})
    (ended,) = generate(PROMPT, always)
    assert (ended.token_ids, ended.text) == ([256], "")
    assert (ended.finish_reason, ended.stop_reason) == ("stop", 256)
    (ignored,) = generate(PROMPT, dataclasses.replace(always, ignore_eos=True))
    assert ignored.token_ids == [256] * 12
    assert ignored.finish_reason == "length"
    (replaced,) = generate(PROMPT, dataclasses.replace(always, stop_token_ids=(65,)))
    assert replaced.token_ids == [256] * 12


def test_stop_token_cuts_the_greedy_completion(generate, tokenizer):
    (whole,) = generate(PROMPT, GREEDY)
    stop = whole.token_ids[4]
    place = whole.token_ids.index(stop)
    (cut,) = generate(PROMPT, dataclasses.replace(GREEDY, stop_token_ids=(stop,)))
    assert cut.token_ids == whole.token_ids[: place + 1]
    assert cut.text == tokenizer.decode(whole.token_ids[:place])
    assert cut.stop_reason == stop


def test_without_tokenizer_tokens_are_all_there_is(model, generate):
    engine = Engine(model, num_tokens=257)
    (completion,) = engine.submit(PROMPT, GREEDY).result()
    assert completion.text == ""
    assert completion.token_ids == generate(PROMPT, GREEDY)[0].token_ids
    with pytest.raises(ValueError, match="need a tokenizer"):
        engine.submit(PROMPT, GenerationOptions(max_new_tokens=1, stop=("a",)))


def test_long_prompt_stalls_no_stream(engine):
    short = engine.submit(PROMPT[:2], dataclasses.replace(GREEDY, logit_bias={65: 1e3}))
    engine.step()
    engine.submit(list(range(50)), GREEDY)
    for _ in range(4):
        before = len(short.completions[0].token_ids)
        engine.step()
        assert len(short.completions[0].token_ids) == before + 1


def test_full_context_can_be_used_to_its_last_place(model):
    engine = Engine(model, num_slots=1, context=8)
    assert (
        len(engine.submit(PROMPT, GenerationOptions(max_new_tokens=3)).result()[0].token_ids) == 3
    )
    with pytest.raises(ContextLengthError):
        engine.submit(PROMPT, GenerationOptions(max_new_tokens=4))


def test_impossible_engines_are_refused(model, config):
    with pytest.raises(ValueError, match="context must be 1 to 64"):
        Engine(model, context=65)
    with pytest.raises(ValueError, match="num_tokens must be 1 to 264"):
        Engine(model, num_tokens=265)
    with pytest.raises(UnsupportedError, match="load it whole"):
        Engine(PhiForCausalLM(config, layers=1))


def test_dropout_is_never_left_on(config):
    model = PhiForCausalLM(dataclasses.replace(config, resid_pdrop=0.1))
    engine = Engine(model)
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        engine.submit(PROMPT, GREEDY)
    model.eval()
    engine.submit(PROMPT, GREEDY)


def test_an_engine_first_used_under_inference_mode_serves_those_outside_it_too(model, tokenizer):
    options = GenerationOptions(max_new_tokens=4, presence_penalty=0.5, n=2)
    expected = Engine(model, tokenizer).submit(PROMPT, options).result()
    engine = Engine(model, tokenizer)
    begun = engine.submit(PROMPT, options)
    with torch.inference_mode():
        engine.step()
    for request in (begun, engine.submit(PROMPT, options)):
        ours = [completion.token_ids for completion in request.result()]
        assert ours == [completion.token_ids for completion in expected]


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": -1e308},
        {"frequency_penalty": -3e38},
        {"logit_bias": {3: 1e308}},
    ],
    ids=str,
)
def test_a_request_whose_logits_overflow_fails_alone(config, options):
    engine = Engine(make_model(config, dtype=torch.float32))
    greedy = GenerationOptions(max_new_tokens=12, ignore_eos=True)
    neighbour = engine.submit(PROMPT, greedy)
    bad = GenerationOptions(max_new_tokens=12, temperature=1.0, logprobs=1, **options)
    request = engine.submit(PROMPT, bad)
    engine.run()
    assert neighbour.error is None
    assert len(neighbour.completions[0].token_ids) == 12
    assert "leave no token to sample, or overflow" in str(request.error)
