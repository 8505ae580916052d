import pickle

import numpy as np
import pytest

import phiscope
from phiscope.errors import ContextLengthError, FilterError
from phiscope.filtering import FilterOptions, LabelFields, fit_filter
from phiscope.store import open_store

KINDS = ["ridge", "logistic", "forest", "mlp"]


def score_stored(fitted, folder):
    return fitted.score_vectors(fitted.features.read(open_store(folder), slice(None)))


@pytest.mark.parametrize("kind", ["ridge", "logistic", "mlp"])
def test_scores_of_texts_are_those_of_their_stored_states(
    kind, fitted, phi, texts, folder, half_folder
):
    scores = fitted(kind).score(phi, texts)
    np.testing.assert_allclose(scores, score_stored(fitted(kind), folder), atol=1e-5)
    np.testing.assert_allclose(scores, score_stored(fitted(kind), half_folder), atol=1e-2)


def test_a_forest_scores_texts_as_their_stored_states(fitted, phi, texts, folder):
    np.testing.assert_allclose(
        fitted("forest").score(phi, texts), score_stored(fitted("forest"), folder), atol=1e-2
    )


def test_a_filter_of_states_in_float16_scores_texts(fit, half_folder, phi, texts):
    fitted = fit(store=half_folder)
    np.testing.assert_allclose(
        fitted.score(phi, texts), score_stored(fitted, half_folder), atol=1e-2
    )


def test_a_text_scores_alone_as_among_others(fitted, phi, texts):
    together = fitted().score(phi, texts[:5])
    alone = [fitted().score(phi, [text])[0] for text in texts[:5]]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_a_text_is_kept_at_the_threshold(fitted):
    threshold = fitted().threshold
    scores = np.array([threshold - 1e-9, threshold, threshold + 1e-9])
    assert fitted().keep(scores).tolist() == [False, True, True]


def test_another_model_is_refused_unless_any_will_do(fitted, texts):
    other = phiscope.load("tiny", mode="fp32-cpu", layers=3)
    with pytest.raises(FilterError, match="has another config; load that model"):
        fitted().score(other, texts[:2])


def test_the_same_model_with_other_weights_is_refused(fitted, texts):
    other = phiscope.load("nano", mode="fp32-cpu")
    other.model.model.layers[1].mlp.fc1.weight.data[0, 0] += 1
    with pytest.raises(FilterError, match="has other weights, or the same in another mode"):
        fitted().score(other, texts[:2])
    assert fitted().score(other, texts[:2], any_model=True).shape == (2,)


def test_weights_after_the_last_block_that_was_read_do_not_matter(fitted, phi, texts):
    other = phiscope.load("nano", mode="fp32-cpu")
    other.model.model.layers[3].mlp.fc1.weight.data += 1
    assert np.array_equal(fitted().score(other, texts[:2]), fitted().score(phi, texts[:2]))


def test_a_text_that_is_too_long_is_refused(fitted, phi):
    with pytest.raises(ContextLengthError):
        fitted().score(phi, ["word " * 400])


def test_a_filter_of_some_tokens_cannot_read_texts_alone(write_store, rows, phi, texts):
    store = write_store(tokens="last:3")
    options = FilterOptions(positive="textbook", held_out=0.4)
    fitted = fit_filter(store, rows, options, fields=LabelFields(group="template"))
    with pytest.raises(FilterError, match="the tokens 'last:3' of each text"):
        fitted.score(phi, texts[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_can_be_sent_to_another_process(kind, fitted, folder):
    sent = pickle.loads(pickle.dumps(fitted(kind)))
    assert np.array_equal(score_stored(sent, folder), score_stored(fitted(kind), folder))
