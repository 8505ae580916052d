import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

import phiscope
from phiscope.checkpoint.hub import resolve
from phiscope.errors import ContextLengthError, NonFiniteError, UnsupportedError
from phiscope.heads.prefix import Given, interleave, split_markers, text_loss
from phiscope.heads.projector import Projector
from phiscope.hf import PhiForCausalLM
from phiscope.packing import pack_lengths
from phiscope.wide import widen

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "prefix.py"


@pytest.fixture(scope="module")
def phi():
    return phiscope.load("nano", mode="fp32-cpu")


@pytest.fixture(scope="module")
def in_transformers():
    return PhiForCausalLM.from_pretrained("nano", dtype=torch.float32).eval()


@pytest.fixture
def projector():
    torch.manual_seed(0)
    return Projector(6, 64, num_tokens=2)


@pytest.fixture
def features():
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def prompts(phi, projector, features):
    """Two of different lengths: one begins with text, the other with features."""
    parts = [
        ["see ", projector(features), Given(" : "), "def add(a, b):"],
        [projector(features[:1]), "import os"],
    ]
    return [interleave(phi.model, part, tokenizer=phi.tokenizer) for part in parts]


def test_parts_lie_in_their_order(phi):
    features = torch.randn(2, 64)
    prompt = interleave(phi.model, ["a b", features, [5, 6]], tokenizer=phi.tokenizer)
    ids = phi.tokenizer.encode("a b")
    embed = phi.model.model.embed_tokens
    expected = [embed(torch.tensor(ids)), features, embed(torch.tensor([5, 6]))]
    assert torch.equal(prompt.embeddings, torch.cat(expected))
    assert prompt.token_ids == (*ids, None, None, 5, 6)


def test_places_of_text_are_known_and_given_text_is_not_learnt(phi):
    parts = [Given([1, 2]), torch.zeros(2, 64), [3, 4]]
    prompt = interleave(phi.model, parts)
    assert prompt.token_ids == (1, 2, None, None, 3, 4)
    assert prompt.labels.tolist() == [-100, -100, -100, -100, 3, 4]


def test_any_phi_or_its_embedding_gives_the_same_prompt(phi, in_transformers, features):
    theirs = transformers.PhiForCausalLM.from_pretrained(resolve("nano"), dtype=torch.float32)
    parts = [[1, 2], torch.ones(2, 64), torch.tensor([3])]
    expected = interleave(phi.model, parts).embeddings
    models = [in_transformers, in_transformers.model, theirs, phi.model.model.embed_tokens]
    assert all(torch.equal(interleave(model, parts).embeddings, expected) for model in models)


def test_features_take_the_dtype_of_the_embeddings():
    model = phiscope.load("nano", mode="bf16-cpu").model
    features = torch.randn(2, 64)
    assert torch.equal(interleave(model, [features]).embeddings, features.bfloat16())
    wide = interleave(widen(model), [features, [1]]).embeddings
    assert torch.equal(wide[:2], features)


def test_logits_of_a_prompt_equal_those_through_transformers(phi, in_transformers, prompts):
    for prompt in prompts:
        ours = phi.model(prompt.embeddings, pack_lengths([len(prompt)]))
        theirs = in_transformers(inputs_embeds=prompt.embeddings[None]).logits[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_completion_of_a_prompt_equals_that_through_transformers(phi, in_transformers, prompts):
    for prompt in prompts:
        inputs = prompt.embeddings.detach()[None]
        mask = torch.ones(inputs.shape[:2], dtype=torch.int64)
        theirs = in_transformers.generate(
            inputs_embeds=inputs, attention_mask=mask, max_new_tokens=12, do_sample=False
        )
        ours = phi.generate(prompt.embeddings, max_new_tokens=12)
        assert ours.token_ids == theirs[0].tolist()


def test_completion_of_embedded_text_is_that_of_the_text(phi):
    text = "def add(a, b):"
    prompt = interleave(phi.model, [text], tokenizer=phi.tokenizer)
    expected = phi.generate(text, max_new_tokens=12).token_ids
    assert phi.generate(prompt.embeddings, max_new_tokens=12).token_ids == expected


def test_states_of_a_prompt_are_captured_where_the_features_lie(phi, prompts):
    acts = phi.capture([prompt.embeddings for prompt in prompts], ["embeddings", "resid_post.1"])
    assert torch.equal(acts["embeddings"][0], prompts[0].embeddings)
    assert [len(states) for states in acts["resid_post.1"]] == [len(prompt) for prompt in prompts]


def test_loss_of_text_alone_is_its_mean_log_likelihood(phi):
    text = "def add(a, b):"
    prompt = interleave(phi.model, [text], tokenizer=phi.tokenizer)
    expected = -torch.tensor(phi.score(text).logprobs).mean()
    torch.testing.assert_close(text_loss(phi.model, [prompt]), expected)


def test_loss_counts_the_learnt_tokens_of_all_prompts_alike(phi, prompts):
    total, count = 0.0, 0
    for prompt in prompts:
        logits = phi.model(prompt.embeddings, pack_lengths([len(prompt)]))
        targets = prompt.labels[1:]
        total += F.cross_entropy(logits[:-1], targets, ignore_index=-100, reduction="sum")
        count += int((targets != -100).sum())
    torch.testing.assert_close(text_loss(phi.model, prompts), total / count)


def test_gradients_of_the_projector_equal_those_through_transformers(
    phi, in_transformers, projector, prompts
):
    in_transformers.requires_grad_(False)
    prompt = prompts[0]
    theirs = in_transformers(inputs_embeds=prompt.embeddings[None], labels=prompt.labels[None])
    ours = text_loss(phi.model, [prompt])
    weights = list(projector.parameters())
    expected = torch.autograd.grad(theirs.loss, weights, retain_graph=True)
    for gradient, other in zip(torch.autograd.grad(ours, weights), expected, strict=True):
        assert other.norm() > 0
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_a_frozen_model_gets_no_gradients(phi, projector, prompts):
    text_loss(phi.model, prompts).backward()
    assert all(weights.grad is not None for weights in projector.parameters())
    assert all(weights.grad is None for weights in phi.model.parameters())


def test_gradients_come_through_narrow_weights(projector, features):
    model = phiscope.load("nano", mode="bf16-fp32-cpu").model
    text_loss(model, [interleave(model, [projector(features), [1, 2]])]).backward()
    assert all(weights.grad.norm() > 0 for weights in projector.parameters())


def test_a_model_that_passes_no_gradients_on_is_refused(projector, features):
    model = phiscope.load("nano", mode="int8-cpu").model
    prompt = interleave(model, [projector(features), [1, 2]])
    with pytest.raises(UnsupportedError, match="integer weights pass no gradients on"):
        text_loss(model, [prompt])


def test_nothing_to_learn_is_refused(phi):
    with pytest.raises(ValueError, match="no prompts"):
        text_loss(phi.model, [])
    for parts in ([torch.zeros(2, 64)], [[1]], [[1], Given([2, 3])]):
        with pytest.raises(ValueError, match="no text to learn behind"):
            text_loss(phi.model, [interleave(phi.model, parts)])


def test_a_prompt_beyond_the_context_is_refused(phi):
    prompt = interleave(phi.model, [torch.zeros(256, 64), [1]])
    with pytest.raises(ContextLengthError, match="257 tokens exceed the context of 256"):
        text_loss(phi.model, [prompt])


WRONG_PARTS = {
    "part 1: features are .n, 64. with one token": [[1], torch.zeros(2, 32)],
    r"got \(2, 3, 64\)": [torch.zeros(2, 3, 64)],
    r"got \(0, 64\)": [torch.zeros(0, 64)],
    "part 0: token id 768 is not one of the model's 0 to 767": [[768]],
    "part 0: token id -1": [torch.tensor([-1])],
    r"part 0: token ids are integers .T,., got torch.float32": [[0.5]],
    "part 0: token ids are integers .T,., got torch.bool": [torch.tensor([True])],
    "part 1 is text: give tokenizer= as well": [[1], "text"],
    "the parts have no tokens": [[]],
}


@pytest.mark.parametrize("message", WRONG_PARTS)
def test_a_part_that_does_not_fit_is_named(phi, message):
    with pytest.raises(ValueError, match=message):
        interleave(phi.model, WRONG_PARTS[message])


def test_what_is_no_part_is_named(phi):
    with pytest.raises(TypeError, match="part 0 is text, token ids or features, got 7"):
        interleave(phi.model, [7])
    with pytest.raises(TypeError, match="part 0 is Given features"):
        interleave(phi.model, [Given(torch.zeros(2, 64))])
    with pytest.raises(TypeError, match=r"write \[\.\.\.\] around it"):
        interleave(phi.model, "text", tokenizer=phi.tokenizer)
    with pytest.raises(TypeError, match="a Linear is no Phi"):
        interleave(torch.nn.Linear(2, 2), [[1]])


def test_features_that_the_dtype_cannot_hold_are_refused(phi):
    with pytest.raises(NonFiniteError, match="part 1: the features"):
        interleave(phi.model, [[1], torch.full((1, 64), float("nan"))])
    with pytest.raises(NonFiniteError, match="part 0: the features"):
        interleave(phi.model, [torch.full((1, 64), 1e300, dtype=torch.float64)])


def test_markers_are_filled_in_order():
    a, b, sound = (torch.full((1, 4), float(i)) for i in range(3))
    text = "<image> and <image>: <sound>!"
    parts = split_markers(text, {"<image>": [a, b], "<sound>": [sound]})
    assert parts == [a, " and ", b, ": ", sound, "!"]


def test_the_longer_of_two_markers_is_read():
    a, b = torch.zeros(1, 4), torch.ones(1, 4)
    assert split_markers("<i>2 <i>", {"<i>": [a], "<i>2": [b]}) == [b, " ", a]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_markers_without_features_and_features_without_markers_are_refused(count):
    message = f"the text has '<image>' 2 times, and there are features for {count}"
    with pytest.raises(ValueError, match=message):
        split_markers("<image> or <image>", {"<image>": torch.zeros(count, 1, 4)})


def test_the_empty_marker_is_refused():
    for features in ({}, {"": [torch.zeros(1, 4)]}):
        with pytest.raises(ValueError, match="markers are texts"):
            split_markers("text", features)


def make_tones(generator, count):
    """Four frames of 32 samples each, (count, 4, 32), of a low or a high tone; which of them."""
    is_high = torch.rand(count, 1, generator=generator) < 0.5
    phase = torch.rand(count, 1, generator=generator) * 6.3
    times = torch.arange(128) * torch.where(is_high, 0.9, 0.3)
    return (times + phase).sin().unflatten(1, (4, 32)), is_high[:, 0].tolist()


def test_a_projector_learns_to_name_sounds(phi):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    names, projector = ("def", "import"), Projector(32, 64)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-2)
    for _ in range(60):
        sounds, classes = make_tones(generator, 16)
        prompts = [
            interleave(phi.model, [sound, names[which]], tokenizer=phi.tokenizer)
            for sound, which in zip(projector(sounds), classes, strict=True)
        ]
        optimizer.zero_grad()
        text_loss(phi.model, prompts).backward()
        optimizer.step()
    sounds, classes = make_tones(generator, 40)
    completions = phi.generate(list(projector(sounds)), max_new_tokens=1)
    named = [completion.text for completion in completions]
    rights = [name == names[which] for name, which in zip(named, classes, strict=True)]
    assert sum(rights) >= 38


def test_example_trains_and_names_pictures(capsys, tmp_path):
    file = tmp_path / "projector.safetensors"
    arguments = ["--model", "nano", "--steps", "6", "--held-out", "4", "--width", "64"]
    main = runpy.run_path(str(EXAMPLE))["main"]
    main([*arguments, "--threads", "1", "--out", str(file)])
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[3]) for line in lines if line.startswith("step")]
    assert losses[-1] < losses[0] - 0.5
    assert lines[-2].endswith("of 4 new pictures")
    assert lines[-1] == f"saved as {file}"


def test_pictures_of_the_example_show_what_their_captions_say():
    example = runpy.run_path(str(EXAMPLE))
    features, captions = example["draw_batch"](example["np"].random.default_rng(0), 64)
    assert features.shape == (64, 1, 3 * 16 * 16)
    assert len(set(captions)) == 16
    for pixels, caption in zip(features.view(64, -1, 3), captions, strict=True):
        colour = torch.tensor(example["COLOURS"][caption.split()[1]])
        brightest = pixels[pixels.sum(-1).argmax()]
        assert ((brightest > 0.4) == (colour > 0)).all()
