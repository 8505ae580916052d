import json
import math
from string import ascii_lowercase

import pytest

import phiscope
from phiscope.cli.chat import Talk
from phiscope.prompts import make_chat_format


@pytest.fixture(scope="module")
def phi(folder):
    return phiscope.load(folder, mode="fp32-cpu")


@pytest.fixture
def talk(phi):
    return Talk(phi, make_chat_format(), max_new_tokens=8, settings={})


def test_an_answer_is_the_completion_of_the_whole_talk(talk, phi):
    first = "".join(talk.ask("Hi"))
    second = "".join(talk.ask("And?"))
    prompt = make_chat_format().render("And?", [("Hi", first)])
    stop = make_chat_format().stop
    assert second == phi.generate(prompt, stop=stop, max_new_tokens=8).text
    assert talk.turns == [("Hi", first), ("And?", second)]


def test_a_second_turn_runs_only_its_new_tokens(folder, monkeypatch):
    phi = phiscope.load(folder, mode="fp32-cpu")
    banned = {i: -math.inf for i in range(257) if chr(i) not in ascii_lowercase}
    words = {"logit_bias": {**banned, 32: 1e3}, "presence_penalty": 2e3}  # a space, then letters
    talk = Talk(phi, make_chat_format(), max_new_tokens=8, settings=words)
    runner = phi.engine._runner
    run, lengths = runner.run, []

    def count(chunks):
        lengths.append(sum(chunk.length for chunk in chunks if chunk.job.is_prefilling))
        return run(chunks)

    monkeypatch.setattr(runner, "run", count)
    prompts = []
    for question in ("Hi", "And what is this?"):
        prompts.append(phi.tokenizer.encode(talk.format.render(question, talk.turns)))
        for _ in talk.ask(question):
            pass
    first, second = prompts
    assert second[: len(first)] == first
    # all of the first turn lies in the cache but for the last token of its answer
    assert [n for n in lengths if n] == [len(first), len(second) - len(first) - 7]


def test_an_answer_left_early_is_kept_as_far_as_it_was_read(talk):
    answer = talk.ask("Hi")
    piece = next(answer)
    answer.close()
    assert talk.turns == [("Hi", piece)]


def test_the_oldest_turns_are_left_out_when_the_context_is_full(talk, capfd):
    for number in range(9):
        for _ in talk.ask(f"question {number}"):
            pass
    err = capfd.readouterr().err
    assert talk.turns[-1][0] == "question 8"
    assert talk.turns[0][0] != "question 0"
    assert "context of 128 tokens is full" in err


def test_a_talk_on_stdin_answers_each_line(run_model, type_in, phi):
    type_in(b"Hi\n\n/reset\nHi\n")
    code, out, err = run_model("chat", "--max-new-tokens", 8, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    wanted = phi.generate("Hi", format="chat", max_new_tokens=8).text.strip()
    assert code == 0
    assert (
        answers == [{"prompt": "Hi", "text": wanted}] * 2
    )  # the second knows nothing of the first
    assert "(forgotten)" in err


def test_a_line_that_is_too_long_is_refused_and_the_talk_goes_on(run_model, type_in):
    type_in(b"long " * 40 + b"\nHi\n")
    code, out, err = run_model("chat", "--max-new-tokens", 4)
    assert code == 0
    assert "too long" in err
    assert out.startswith("Bob: ")
    assert out.count("Bob: ") == 1


def test_help_and_unknown_commands_list_the_commands(run_model, type_in):
    type_in(b"/help\n/what\n/quit\nnever read\n")
    code, out, err = run_model("chat")
    assert (code, out) == (0, "")
    assert err.count("/reset  forget") == 2


def test_two_speakers_of_one_name_are_a_usage_error(run_model):
    assert run_model("chat", "--user", "Bob")[0] == 2
