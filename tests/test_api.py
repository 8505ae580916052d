import dataclasses

import numpy as np
import pytest
import torch
from oracle import make_model, make_peer

import phiscope
from phiscope.config import PhiConfig
from phiscope.errors import ContextLengthError, PointError, UnsupportedError
from phiscope.packing import pack
from phiscope.tokenizer import tokenizer_from_merges

TEXTS = ["def first(x):\n    return x", "import os", "The quick brown fox.", "x"]
MERGES = ["#version: 0.2", "r e", "re t", "i n", "Ġ f", "Ġ t"]
CONFIG = PhiConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=128,
    rotary_dim=8,
    initializer_range=0.3,
    bos_token_id=0,
    eos_token_id=0,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    tokenizer = tokenizer_from_merges(MERGES)
    config = dataclasses.replace(
        CONFIG, bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    phiscope.save_checkpoint(make_model(config, dtype=torch.float32), folder, layout="D")
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def phi(folder):
    return phiscope.load(folder)


@pytest.fixture(scope="module")
def peer(phi):
    return make_peer(phi.model)


def test_hidden_states_equal_transformers(phi, peer):
    for text, states in zip(TEXTS, phi.hidden_states(TEXTS), strict=True):
        output = peer(torch.tensor([phi.tokenizer.encode(text)]), output_hidden_states=True)
        theirs = torch.cat(output.hidden_states)
        torch.testing.assert_close(states, theirs, rtol=1e-4, atol=2e-5)


def test_chosen_layers_are_those_of_the_whole_tuple(phi):
    whole = phi.hidden_states(TEXTS[0])
    for layers in ([2, 0], [1, 1]):
        torch.testing.assert_close(phi.hidden_states(TEXTS[0], layers=layers), whole[layers])


def test_last_block_is_the_stream_before_the_final_norm(phi):
    before = phi.hidden_states(TEXTS[0], convention="last_block")
    after = phi.hidden_states(TEXTS[0])[-1]
    norm = phi.model.model.final_layernorm
    torch.testing.assert_close(norm(before), after)
    named = phi.hidden_states(TEXTS[0], convention="points")
    torch.testing.assert_close(named["resid_post.2"], before)
    assert list(named) == [
        "embeddings",
        "resid_post.0",
        "resid_post.1",
        "resid_post.2",
        "final_norm",
    ]


def test_layers_of_another_convention_are_refused(phi):
    with pytest.raises(ValueError, match="'transformers', not last_block"):
        phi.hidden_states("x", layers=[1], convention="last_block")


@pytest.mark.parametrize("index", [-1, 4])
def test_layers_beyond_the_tuple_are_refused(phi, index):
    with pytest.raises(PointError, match=r"hidden_states\[0\] to \[3\]"):
        phi.hidden_states("x", layers=[index])


def test_many_texts_give_what_each_gives_alone(phi, monkeypatch):
    monkeypatch.setattr("phiscope.api.TOKEN_BUDGET", 8)
    together = phi.capture(TEXTS, ["resid_post.1", "attn_probs.2"])
    for index, text in enumerate(TEXTS):
        alone = phi.capture(text, ["resid_post.1", "attn_probs.2"])
        for name, values in together.items():
            torch.testing.assert_close(values[index], alone[name][0], rtol=1e-4, atol=1e-5)


def test_pooled_capture_is_the_mean_of_its_rows(phi):
    pooled = phi.capture(TEXTS, "resid_post.1", pool="mean")["resid_post.1"]
    rows = phi.capture(TEXTS, "resid_post.1")["resid_post.1"]
    torch.testing.assert_close(pooled, torch.stack([row.mean(0) for row in rows]))
    several = phi.capture(TEXTS, "resid_post.1", pool=["mean", "last"])
    assert torch.equal(several["resid_post.1.mean"], pooled)
    assert torch.equal(several["resid_post.1.last"], torch.stack([row[-1] for row in rows]))


def test_embeddings_of_texts_are_pooled_hidden_states(phi):
    vectors = phi.embed(TEXTS, layer=2)
    states = phi.hidden_states(TEXTS, layers=[2])
    expected = torch.stack([state[0].mean(0) for state in states])
    torch.testing.assert_close(torch.from_numpy(vectors), expected)
    units = phi.embed(TEXTS, layer=2, normalize=True)
    assert (units**2).sum(1) == pytest.approx([1.0] * len(TEXTS), abs=1e-5)
    assert phi.embed("x").shape == (64,)


def test_score_is_the_log_likelihood_that_transformers_gives(phi, peer):
    ids = torch.tensor([phi.tokenizer.encode(TEXTS[0])])
    loss = peer(ids, labels=ids).loss
    score = phi.score(TEXTS[0])
    assert score.log_likelihood == pytest.approx(-float(loss) * (ids.shape[1] - 1), rel=1e-4)
    assert score.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)


def test_generate_equals_transformers(phi, peer):
    ids = torch.tensor([phi.tokenizer.encode(TEXTS[0])])
    theirs = peer.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=319,
        pad_token_id=319,
        suppress_tokens=list(range(phi.tokenizer.num_tokens, 320)),
    )
    ours = phi.generate(TEXTS[0], max_new_tokens=12, ignore_eos=True)
    assert ours.token_ids == theirs[0, ids.shape[1] :].tolist()


def test_several_prompts_give_a_list_and_n_multiplies_it(phi):
    alone = [phi.generate(text, max_new_tokens=5) for text in TEXTS]
    together = phi.generate(TEXTS, max_new_tokens=5)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert len(phi.generate("x", max_new_tokens=2, n=3, temperature=1.0)) == 3


def test_a_prompt_that_is_refused_leaves_nothing_in_the_queue(phi):
    with pytest.raises(ContextLengthError):
        phi.generate(["fine", "too long " * 40], max_new_tokens=5)
    assert phi.engine.scheduler.is_idle


def test_stream_joins_to_the_text_of_generate(phi):
    settings = {"max_new_tokens": 20, "temperature": 1.0, "seed": 7}
    pieces = list(phi.stream(TEXTS[0], **settings))
    assert "".join(pieces) == phi.generate(TEXTS[0], **settings).text


def test_a_stream_is_checked_at_the_call(phi):
    with pytest.raises(ContextLengthError, match=r"1 tokens of prompt.*128 are 129"):
        phi.stream("x", max_new_tokens=128)


def test_a_stream_of_several_completions_is_refused(phi):
    with pytest.raises(ValueError, match="one completion, got n=2"):
        phi.stream("x", n=2, temperature=1.0)


def test_closing_a_stream_frees_its_slot(phi):
    stream = phi.stream("x", max_new_tokens=50, ignore_eos=True)
    next(stream)
    stream.close()
    assert phi.engine.scheduler.is_idle


def test_states_of_a_completion_have_a_row_for_every_token(phi):
    completion = phi.generate("import os", max_new_tokens=6, points=["resid_post.2"])
    ids = phi.tokenizer.encode("import os") + completion.token_ids
    assert [label.token_id for label in completion.labels] == ids
    whole = phi.capture(ids, "resid_post.2")["resid_post.2"][0]
    torch.testing.assert_close(completion.states["resid_post.2"], whole, rtol=1e-4, atol=1e-5)


def test_embeddings_as_input_equal_their_tokens(phi):
    ids = phi.tokenizer.encode(TEXTS[0])
    embeddings = phi.model.model.embed_tokens(torch.tensor(ids))
    assert torch.equal(phi.hidden_states(embeddings), phi.hidden_states(TEXTS[0]))
    mixed = phi.hidden_states([TEXTS[1], embeddings])
    torch.testing.assert_close(mixed[1], phi.hidden_states(TEXTS[0]), rtol=1e-4, atol=1e-5)
    ours = phi.generate(embeddings, max_new_tokens=5)
    assert ours.token_ids == phi.generate(TEXTS[0], max_new_tokens=5).token_ids


def test_steering_lasts_as_long_as_its_block(phi):
    vector = torch.linspace(-3, 3, 64)
    before = phi.hidden_states("import os")
    text = phi.generate("import os", max_new_tokens=8).token_ids
    with phi.steer({"resid_post.1": vector}):
        states = phi.hidden_states("import os")
        steered = phi.generate("import os", max_new_tokens=8).token_ids
    torch.testing.assert_close(states[2], before[2] + vector)
    assert steered != text
    with pytest.raises(RuntimeError), phi.steer({"resid_post.1": vector}):
        raise RuntimeError
    assert torch.equal(phi.hidden_states("import os"), before)


def test_vectors_as_embed_gives_them_steer(phi):
    vector = phi.embed("import os", layer=2) - phi.embed("x", layer=2)
    with phi.steer({"resid_post.1": vector}):
        states = phi.hidden_states("import os")
    with phi.steer({"resid_post.1": torch.from_numpy(vector)}):
        assert torch.equal(phi.hidden_states("import os"), states)


def test_token_ids_of_any_kind_are_one_text(phi):
    ids = phi.tokenizer.encode(TEXTS[0])
    expected = phi.hidden_states(TEXTS[0])
    for kind in (ids, tuple(ids), np.array(ids), torch.tensor(ids)):
        assert torch.equal(phi.hidden_states(kind), expected)
    for wrong in ([*ids, 320], torch.tensor([ids]), torch.tensor(ids) > 0):
        with pytest.raises(ValueError, match="token id"):
            phi.hidden_states(wrong)


def test_what_cannot_be_scored_or_pooled_is_refused(phi):
    with pytest.raises(ValueError, match="one text is scored at a time, got 2"):
        phi.score(TEXTS[:2])
    with pytest.raises(ValueError, match="names no reducer"):
        phi.capture(TEXTS, "resid_post.0", pool=[])


def test_a_steering_vector_of_the_wrong_size_is_refused_by_its_point(phi):
    with (
        pytest.raises(ValueError, match=r"resid_post\.1"),
        phi.steer({"resid_post.1": torch.ones(63)}),
    ):
        pass


def test_fewer_layers_give_the_same_states_and_no_text(folder, phi):
    part = phiscope.load(folder, layers=2)
    whole = phi.hidden_states("import os")
    torch.testing.assert_close(part.hidden_states("import os", layers=[0, 1, 2]), whole[:3])
    with pytest.raises(UnsupportedError, match="cannot generate"):
        part.generate("x")
    with pytest.raises(PointError, match=r"final_norm"):
        part.hidden_states("x")


def test_the_empty_text_is_the_end_token(phi):
    end = phi.tokenizer.eos_token_id
    assert torch.equal(phi.hidden_states(""), phi.hidden_states([end]))


def test_a_text_longer_than_the_context_is_an_error_with_both_counts(phi):
    with pytest.raises(ContextLengthError, match=r"has \d+ tokens.* context of 128"):
        phi.hidden_states("z y " * 200)


def test_no_texts_are_refused(phi):
    with pytest.raises(ValueError, match="no texts"):
        phi.embed([])


def test_a_format_ends_the_answer_and_history_needs_one(phi):
    with pytest.raises(ValueError, match="give format="):
        phi.generate("hello", history=[("a", "b")])
    with pytest.raises(ValueError, match="no prompt format 'essay'"):
        phi.generate("hello", format="essay")
    completion = phi.generate("hello", format="instruct", max_new_tokens=4, points="embeddings")
    shown = phi.tokenizer.encode("Instruct: hello\nOutput:")
    assert [label.token_id for label in completion.labels][: len(shown)] == shown


@pytest.mark.parametrize("draft", ["prompt-lookup", "model"])
def test_a_draft_changes_no_text(draft, phi, folder):
    draft = phiscope.load(folder) if draft == "model" else draft
    prompt, options = "def f(x):\n    return x\ndef f(", {"max_new_tokens": 30, "draft_tokens": 3}
    drafted = phi.generate(prompt, draft=draft, **options)
    assert drafted.text == phi.generate(prompt, max_new_tokens=30).text
    assert drafted.num_drafted >= drafted.num_accepted > 0
    assert "".join(phi.stream(prompt, draft=draft, **options)) == drafted.text
    vector = torch.arange(64.0)
    with phi.steer({"resid_post.1": vector}):
        steered = phi.generate(prompt, draft=draft, points="resid_post.2", **options)
        assert steered.text == phi.generate(prompt, max_new_tokens=30).text != drafted.text
    assert len(steered.states["resid_post.2"]) == len(steered.labels)


def test_a_draft_that_cannot_be_is_refused_by_name(phi, tmp_path):
    with pytest.raises(ValueError, match="no draft 'lookup'; give 'prompt-lookup' or a loaded Phi"):
        phi.generate("a", draft="lookup")
    with pytest.raises(UnsupportedError, match="other tokens"):
        phi.generate("a", draft=phiscope.load("nano"))
    with pytest.raises(ValueError, match="needs a draft"):
        phi.generate("a", draft_tokens=2, max_new_tokens=4)


def test_a_text_that_begins_as_one_before_starts_from_it(folder):
    phi = phiscope.load(folder)
    first = phi.generate([5, 6, 7, 8], max_new_tokens=4)
    again = phi.generate([5, 6, 7, 8, 9], max_new_tokens=4)
    assert (first.num_reused, again.num_reused) == (0, 4)
    with phi.steer({"resid_post.1": torch.ones(64)}):
        assert phi.generate([5, 6, 7, 8, 9], max_new_tokens=4).num_reused == 0
        assert phi.generate([5, 6, 7, 8, 9], max_new_tokens=4).num_reused == 4
    assert phi.generate([5, 6, 7, 8, 9], max_new_tokens=4).token_ids == again.token_ids


def test_model_is_not_changed_by_use(phi, folder):
    fresh = phiscope.load(folder)
    assert torch.equal(phi.model(*pack([[1, 2, 3]])), fresh.model(*pack([[1, 2, 3]])))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda phi: phi.generate(None), TypeError, "a text is a string, token ids or embeddings"),
        (lambda phi: phi.generate("a", max_tokens=3), TypeError, "did you mean max_new_tokens"),
        (lambda phi: phi.hidden_states("a", layers=2), TypeError, r"write \[2\]"),
        (lambda phi: phi.stream(["a", "b"]), TypeError, "one text is streamed at a time, got 2"),
        (lambda phi: phiscope.Add("resid_post.1", torch.ones(64)), TypeError, "Point"),
    ],
)
def test_a_mistaken_call_is_told_what_would_be_right(phi, call, error, message):
    with pytest.raises(error, match=message):
        call(phi)


def test_part_of_a_model_is_not_saved_as_a_checkpoint(folder, tmp_path):
    with pytest.raises(UnsupportedError, match="load it whole"):
        phiscope.save_checkpoint(phiscope.load(folder, layers=2).model, tmp_path / "part")
