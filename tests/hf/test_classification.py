"""Scores and losses of texts and of tokens equal those of transformers' own classes."""

import inspect

import pytest
import torch
from hf.peers import VARIANTS, assert_same, make_pair, pad_left, pad_right, random_ids

PAD = 0
TEXTS, TOKENS = "PhiForSequenceClassification", "PhiForTokenClassification"
MASKS = {"none": None, "left": pad_left([6, 3, 1]), "right": pad_right([6, 3, 1])}
PROBLEMS = {
    "regression": (1, torch.tensor([0.5, -1.0, 2.0])),
    "several regressions": (4, torch.arange(12.0).view(3, 4)),
    "single_label_classification": (4, torch.tensor([3, 0, 1])),
    "multi_label_classification": (4, (torch.arange(12).view(3, 4) % 3 == 0).float()),
}


def make(name, **options):
    return make_pair(name, pad_token_id=PAD, **{"num_labels": 4, **options})


def padded(padding):
    """Ids (3, 6) with pad tokens where the mask says so, and the mask."""
    mask = MASKS[padding]
    ids = random_ids(3, 6)
    return {"input_ids": ids} if mask is None else {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("name", [TEXTS, TOKENS])
def test_scores_equal_those_of_transformers(name, padding, attention, variant):
    ours, theirs = make(name, attention=attention, **VARIANTS[variant])
    inputs = padded(padding)
    mine, reference = (model(**inputs, output_hidden_states=True) for model in (ours, theirs))
    assert_same(mine.logits, reference.logits, MASKS[padding] if name == TOKENS else None)
    for state, state_ in zip(mine.hidden_states, reference.hidden_states, strict=True):
        assert_same(state, state_, MASKS[padding])
    assert list(mine.keys()) == list(reference.keys())


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("padding", MASKS)
def test_losses_of_texts_and_their_gradients_equal_those_of_transformers(problem, padding):
    num_labels, labels = PROBLEMS[problem]
    kind = None if problem in ("regression", "single_label_classification") else problem
    kind = "regression" if problem == "several regressions" else kind
    ours, theirs = make(TEXTS, num_labels=num_labels, problem_type=kind)
    losses = [model(**padded(padding), labels=labels).loss for model in (ours, theirs)]
    assert_same(*losses)
    assert ours.config.problem_type == theirs.config.problem_type
    assert_same_gradients(ours, theirs, losses)


@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize("padding", MASKS)
def test_losses_of_tokens_and_their_gradients_equal_those_of_transformers(padding, ignores):
    ours, theirs = make(TOKENS)
    inputs = padded(padding)
    labels = random_ids(3, 6, seed=1) % 4
    if ignores and "attention_mask" in inputs:
        labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    losses = [model(**inputs, labels=labels).loss for model in (ours, theirs)]
    assert_same(*losses)
    assert_same_gradients(ours, theirs, losses)


def assert_same_gradients(ours, theirs, losses):
    for loss in losses:
        loss.backward()
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if reference[name].grad is not None:
            assert_same(parameter.grad, reference[name].grad)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_with_embeddings_and_a_mask_the_last_real_token_is_scored(padding):
    ours, theirs = make(TEXTS)
    inputs = padded(padding)
    embeds = ours.model.embed_tokens(inputs["input_ids"])
    mine = ours(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])
    assert_same(mine.logits, theirs(**inputs).logits)


def test_without_a_mask_pad_tokens_say_what_is_the_last():
    ours, theirs = make(TEXTS)
    ids = random_ids(3, 6) * MASKS["right"]
    for rows in (ids, ids[1:2]):
        assert_same(ours(rows).logits, theirs(rows).logits)


def test_one_text_of_embeddings_ends_where_they_end():
    ours, theirs = make(TEXTS)
    ids = random_ids(1, 5)
    assert_same(ours(inputs_embeds=ours.model.embed_tokens(ids)).logits, theirs(ids).logits)


def test_several_texts_without_any_word_of_their_ends_are_refused():
    ours, _ = make_pair(TEXTS, num_labels=4, pad_token_id=None)
    with pytest.raises(ValueError, match="several texts need an attention_mask"):
        ours(random_ids(2, 4))
    ours, _ = make(TEXTS)
    with pytest.raises(ValueError, match="several texts need an attention_mask"):
        ours(inputs_embeds=ours.model.embed_tokens(random_ids(2, 4)))


def test_a_mask_serves_where_there_is_no_pad_token():
    ours, theirs = make_pair(TEXTS, num_labels=4, pad_token_id=None)
    ids, mask = random_ids(3, 6), MASKS["right"]
    scores = ours(ids, attention_mask=mask).logits
    for row, kept in enumerate(mask.bool()):
        assert_same(scores[row], theirs(ids[row, kept][None]).logits[0])


@pytest.mark.parametrize("name", [TEXTS, TOKENS])
def test_text_goes_on_from_a_cache(name):
    ours, _ = make(name)
    ids, mask = random_ids(2, 6), pad_left([6, 4])
    whole = ours(ids, attention_mask=mask).logits
    cache = ours.model(ids[:, :4], attention_mask=mask[:, :4]).past_key_values
    rest = ours(ids[:, 4:], attention_mask=mask, past_key_values=cache).logits
    assert_same(rest, whole if name == TEXTS else whole[:, 4:])


@pytest.mark.parametrize("name", [TEXTS, TOKENS])
def test_maps_states_and_tuples_are_given_as_by_the_model(name):
    ours, theirs = make(name, attention="sdpa")
    exact = make(name, attention="eager")[1]
    wanted = {"output_attentions": True, "output_hidden_states": [0]}
    inputs = padded("left")
    mine, reference = ours(**inputs, **wanted), exact(**inputs, **wanted)
    assert len(mine.attentions) == 3
    for maps, maps_ in zip(mine.attentions, reference.attentions, strict=True):
        assert_same(maps.transpose(1, 2), maps_.transpose(1, 2), inputs["attention_mask"])
    assert [state is None for state in mine.hidden_states] == [False, True, True, True]
    parts = ours(**inputs, return_dict=False)
    where = inputs["attention_mask"] if name == TOKENS else None
    assert_same(parts[0], theirs(**inputs, return_dict=False)[0], where)


@pytest.mark.parametrize("name", [TEXTS, TOKENS])
def test_arguments_are_named_and_others_refused(name):
    ours, _ = make(name)
    named = inspect.signature(type(ours).forward).parameters
    assert {"input_ids", "attention_mask", "inputs_embeds", "labels", "position_ids"} < set(named)
    assert {"past_key_values", "use_cache", "output_hidden_states", "output_attentions"} < set(
        named
    )
    with pytest.raises(TypeError, match="no argument 'logits_to_keep'"):
        ours(random_ids(1, 3), logits_to_keep=1)


def test_dropout_of_tokens_is_that_of_the_config():
    for given, rate in ((None, 0.1), (0.0, 0.0), (0.3, 0.3)):
        ours, theirs = make(TOKENS, classifier_dropout=given)
        assert ours.dropout.p == theirs.dropout.p == rate
