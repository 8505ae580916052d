import json

import pytest
import torch
from safetensors.torch import load_file

import phiscope
from phiscope.cli import generation


@pytest.fixture(scope="module")
def phi(folder):
    return phiscope.load(folder, mode="fp32-cpu")


def test_text_is_what_the_library_generates(run_model, phi):
    code, out, err = run_model("generate", "hello", "--max-new-tokens", 12)
    assert (code, err) == (0, "")
    assert out == phi.generate("hello", max_new_tokens=12).text + "\n"


def test_prompt_comes_from_stdin_to_the_letter(run_model, type_in, phi):
    type_in(b"two\nlines \n")
    _, out, _ = run_model("generate", "-", "--max-new-tokens", 4, "--echo")
    assert out == "two\nlines \n" + phi.generate("two\nlines \n", max_new_tokens=4).text + "\n"


def test_json_has_what_the_library_knows(run_model, phi):
    code, out, _ = run_model("generate", "hello", "--max-new-tokens", 4, "--logprobs", 2, "--json")
    (found,) = json.loads(out)["completions"]
    wanted = phi.generate("hello", max_new_tokens=4, logprobs=2)
    assert code == 0
    assert found["token_ids"] == wanted.token_ids
    assert found["finish_reason"] == "length"
    logprobs = [x.logprob for x in wanted.logprobs]
    assert [x["logprob"] for x in found["logprobs"]] == pytest.approx(logprobs, abs=1e-5)
    assert [len(x["top"]) for x in found["logprobs"]] == [2] * 4


def test_several_samples_repeat_with_their_seed(run_model):
    words = ("generate", "hi", "--n", 3, "--temperature", 1, "--seed", 7, "--max-new-tokens", 5)
    first, second = run_model(*words), run_model(*words)
    assert first == second
    assert [line for line in first[1].splitlines() if line.startswith("==> ")] == [
        "==> 1 of 3 <==", "==> 2 of 3 <==", "==> 3 of 3 <==",
    ]  # fmt: skip


def test_format_renders_the_prompt(run_model, phi):
    words = ("generate", "hi", "--format", "instruct", "--max-new-tokens", 6)
    _, out, _ = run_model(*words)
    assert out == phi.generate("hi", format="instruct", max_new_tokens=6).text + "\n"


def test_stop_text_ends_the_completion(run_model, phi):
    whole = phi.generate("hello", max_new_tokens=12).text
    _, out, _ = run_model("generate", "hello", "--max-new-tokens", 12, "--stop", whole[3])
    assert out == whole[: whole.index(whole[3])] + "\n"


def test_states_of_every_token_are_written_with_their_ids(run_model, phi, tmp_path):
    path = tmp_path / "states.safetensors"
    code, _, _ = run_model(
        "generate", "hello", "--max-new-tokens", 3, "--states", "resid_post.0", "--states", "k.1",
        "--out", path,
    )  # fmt: skip
    tensors = load_file(path)
    wanted = phi.generate("hello", max_new_tokens=3, points=["resid_post.0", "k.1"])
    assert code == 0
    assert tensors["token_ids"].tolist() == [*b"hello", *wanted.token_ids]
    torch.testing.assert_close(tensors["resid_post.0"], wanted.states["resid_post.0"])
    assert tensors["k.1"].shape == (8, 4, 8)


def test_logprobs_are_a_table_below_the_text(run_model, phi):
    _, out, _ = run_model("generate", "hello", "--max-new-tokens", 2, "--logprobs", 1)
    text = phi.generate("hello", max_new_tokens=2).text
    header, *rows = out.removeprefix(text + "\n").splitlines()
    assert header.split() == ["token", "logprob", "likeliest"]
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--temperature", "-1"), "temperature"),
        (("--top-p", "0"), "top_p"),
        (("--stop", ""), "stop string"),
        (("--max-new-tokens", "0"), "max_new_tokens"),
        (("--states", "resid_mid.0", "--out", "x.safetensors"), "parallel"),
        (("--states", "resid_post.0"), "--out"),
        (("--states", "resid_post.0", "--out", "states.txt"), ".safetensors"),
    ],
)
def test_a_value_that_cannot_be_is_a_usage_error_and_prints_nothing(words, told, run_model):
    code, out, err = run_model("generate", "hello", *words)
    assert (code, out) == (2, "")
    assert told in err


def test_a_prompt_beyond_the_context_fails_with_both_counts(run_model):
    code, out, err = run_model("generate", "x" * 130)
    assert (code, out) == (1, "")
    assert "130" in err
    assert "128" in err


def test_defaults_in_the_help_are_those_of_the_library():
    defaults = phiscope.GenerationOptions()
    for flag, _, _, text in generation._OPTIONS:
        value = getattr(defaults, flag.removeprefix("--").replace("-", "_"))
        assert ("(default: " in text) == (value is not None)
        assert value is None or f"(default: {value:g})" in text


def test_every_option_of_the_library_can_be_given_or_is_known_to_be_left_out():
    flags = {flag.removeprefix("--").replace("-", "_") for flag, *_ in generation._OPTIONS}
    left_out = {"logit_bias", "stop_token_ids", "stop_rules", "ignore_eos"}
    fields = set(phiscope.GenerationOptions.__dataclass_fields__)
    assert fields == flags | {"stop", "echo"} | left_out


@pytest.mark.parametrize("draft", ["prompt-lookup", "folder"])
def test_a_draft_changes_no_text_and_json_counts_it(draft, run_model, folder):
    words = ("generate", "abcabcabc", "--max-new-tokens", 20)
    _, plain, _ = run_model(*words)
    drafted = (*words, "--draft", folder if draft == "folder" else draft, "--draft-tokens", 3)
    assert run_model(*drafted) == (0, plain, "")
    _, out, _ = run_model(*drafted, "--json")
    (found,) = json.loads(out)["completions"]
    assert found["num_drafted"] >= found["num_accepted"] > 0
    assert found["text"] + "\n" == plain


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--draft-tokens", 3), "needs a draft"), (("--draft", "nano"), "other tokens")],
)
def test_a_draft_that_cannot_be_is_refused(words, message, run_model):
    code, out, err = run_model("generate", "hi", "--max-new-tokens", 4, *words)
    assert (code != 0, out) == (True, "")
    assert message in err
