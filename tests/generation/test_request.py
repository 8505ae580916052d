import dataclasses

import pytest

from phiscope.generation.engine import Engine
from phiscope.generation.options import GenerationOptions
from phiscope.generation.request import finish

PROMPT = [72, 101, 108, 108, 111]
SAMPLED = GenerationOptions(max_new_tokens=12, temperature=1.0, seed=7)


def test_pieces_joined_are_the_completion(engine, generate):
    options = dataclasses.replace(SAMPLED, logprobs=2, echo=True)
    pieces = list(engine.submit(PROMPT, options).pieces())
    (completion,) = generate(PROMPT, options)
    assert "".join(piece.text for piece in pieces) == completion.text
    assert [i for piece in pieces for i in piece.token_ids] == completion.token_ids
    told = [entry.logprob for piece in pieces for entry in piece.logprobs]
    assert told == pytest.approx([entry.logprob for entry in completion.logprobs], abs=1e-9)
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]


def test_pieces_of_n_completions_are_told_apart(engine):
    request = engine.submit(PROMPT, dataclasses.replace(SAMPLED, n=4))
    texts = [""] * 4
    for piece in request.pieces():
        texts[piece.index] += piece.text
    assert texts == [completion.text for completion in request.completions]


def test_streams_read_in_turns_do_not_disturb_each_other(engine, generate):
    streams = [engine.submit(PROMPT[:k], SAMPLED).pieces() for k in (1, 2, 3, 4, 5)]
    texts = [""] * 5
    while streams_left := [k for k in range(5) if streams[k] is not None]:
        for k in streams_left:
            piece = next(streams[k], None)
            if piece is None:
                streams[k] = None
            else:
                texts[k] += piece.text
    assert texts == [generate(PROMPT[: k + 1], SAMPLED)[0].text for k in range(5)]


def test_no_piece_shows_a_part_of_the_stop(make_chain_engine):
    engine = make_chain_engine("abc\u20acdefgh")
    options = GenerationOptions(max_new_tokens=20, stop=("\u20acdef!", "fg"))
    request = engine.submit([ord("a")], options)
    pieces = list(request.pieces())
    assert "".join(piece.text for piece in pieces) == "bc\u20acde"
    assert pieces[0].text == "b"
    assert (pieces[-1].finish_reason, request.completions[0].stop_reason) == ("stop", "fg")


def test_pieces_wait_for_whole_characters(make_chain_engine):
    engine = make_chain_engine("a\u20acb\U0001f600")
    request = engine.submit([ord("a")], GenerationOptions(max_new_tokens=8))
    assert [piece.text for piece in request.pieces()] == ["\u20ac", "b", "\U0001f600"]


def test_pieces_come_with_the_step_that_makes_them_certain(make_chain_engine):
    engine = make_chain_engine("abcdef")
    request = engine.submit([ord("a")], GenerationOptions(max_new_tokens=4, stop=("dx",)))
    told = []
    while engine.step():
        told.append("".join(piece.text for piece in request.take_pieces()))
    assert told == ["b", "c", ""]
    assert "".join(piece.text for piece in request.take_pieces()) == "de"


def test_cancelling_frees_the_slot_at_once(model, tokenizer, generate):
    engine = Engine(model, tokenizer, num_slots=1)
    first = engine.submit(PROMPT, SAMPLED)
    second = engine.submit(PROMPT[:3], SAMPLED)
    for _ in range(4):
        engine.step()
    first.cancel()
    assert engine.scheduler.num_free_slots == 1
    (cancelled,) = first.result()
    assert cancelled.finish_reason == "cancelled"
    whole = generate(PROMPT, SAMPLED)[0]
    assert cancelled.token_ids == whole.token_ids[:4]
    assert second.result()[0].token_ids == generate(PROMPT[:3], SAMPLED)[0].token_ids


@pytest.mark.parametrize("num_steps", range(5))
def test_cancelling_at_any_time_leaves_nothing(num_steps, model, tokenizer):
    engine = Engine(model, tokenizer, num_slots=2, token_budget=2)
    request = engine.submit(PROMPT, dataclasses.replace(SAMPLED, n=3))
    waiting = engine.submit(PROMPT, SAMPLED)
    for _ in range(num_steps):
        engine.step()
    for cancelled in (request, waiting):
        cancelled.cancel()
        cancelled.cancel()
    assert engine.scheduler.is_idle
    assert engine.scheduler.num_free_slots == 2
    assert not engine.step()
    assert {c.finish_reason for c in request.completions} == {"cancelled"}


def test_cancelling_what_is_done_changes_nothing(engine):
    request = engine.submit(PROMPT, SAMPLED)
    before = request.result()[0]
    request.cancel()
    assert request.result()[0].finish_reason == before.finish_reason == "length"


def test_leaving_a_stream_cancels_it(engine):
    request = engine.submit(PROMPT, dataclasses.replace(SAMPLED, max_new_tokens=50))
    stream = request.pieces()
    next(stream)
    stream.close()
    assert request.is_done
    assert engine.scheduler.is_idle
    assert request.completions[0].finish_reason == "cancelled"


def test_text_of_a_cancelled_stream_is_all_there(make_chain_engine):
    engine = make_chain_engine("abcdef")
    request = engine.submit([ord("a")], GenerationOptions(max_new_tokens=5, stop=("cd!",)))
    for _ in range(3):
        engine.step()
    request.cancel()
    pieces = request.take_pieces()
    assert "".join(piece.text for piece in pieces) == request.completions[0].text == "bcd"
    assert pieces[-1].finish_reason == "cancelled"


def test_a_bar_counts_the_tokens_of_all_requests(monkeypatch, capsys, model, tokenizer):
    monkeypatch.setattr("phiscope.generation.request.BAR_DELAY", 0)
    engine = Engine(model, tokenizer, num_slots=2)
    options = GenerationOptions(max_new_tokens=5, ignore_eos=True)
    completions = finish([engine.submit([1, 2], options) for _ in range(3)], progress=True)
    assert len(completions) == 3
    assert "15/15" in capsys.readouterr().err


def test_one_failure_cancels_the_requests_finished_with_it(model, tokenizer):
    engine = Engine(model, tokenizer, num_slots=1)
    options = GenerationOptions(max_new_tokens=5, ignore_eos=True)
    requests = [engine.submit(PROMPT, options) for _ in range(3)]
    requests[0].error = ValueError("made to fail")
    with pytest.raises(ValueError, match="made to fail"):
        finish(requests)
    assert engine.scheduler.is_idle
