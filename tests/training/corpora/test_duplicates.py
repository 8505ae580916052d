import hashlib
import sys

import pytest
from small_corpora import WORDS, write_sentence

from phiscope.errors import MissingExtraError
from phiscope.training.corpora.duplicates import Duplicates, shingles
from phiscope.training.corpora.options import CorpusOptions


@pytest.fixture
def duplicates():
    return Duplicates(CorpusOptions(near_duplicates=0.8))


def find(duplicates, text):
    return duplicates.find(text, hashlib.sha256(text.encode()).digest())


def test_the_same_text_is_a_duplicate_the_second_time():
    exact = Duplicates(CorpusOptions(near_duplicates=None))
    assert [find(exact, text) for text in ("a", "b", "a")] == [None, None, "duplicate"]


def test_a_text_with_a_word_changed_is_a_near_duplicate(duplicates):
    text = write_sentence(0, 200)
    assert find(duplicates, text) is None
    assert find(duplicates, text + " and more") == "near_duplicate"
    assert find(duplicates, text.upper()) == "near_duplicate"


def test_different_texts_are_kept(duplicates):
    assert {find(duplicates, write_sentence(seed, 60)) for seed in range(60)} == {None}


def test_texts_that_share_half_their_words_are_kept(duplicates):
    shared = write_sentence(0, 100)
    assert find(duplicates, shared + write_sentence(1, 100)) is None
    assert find(duplicates, shared + write_sentence(2, 100)) is None


def test_with_the_threshold_off_only_the_same_text_is_dropped():
    exact = Duplicates(CorpusOptions(near_duplicates=None))
    text = write_sentence(0, 200)
    assert find(exact, text) is None
    assert find(exact, text + " and more") is None


def test_texts_without_words_are_compared_by_their_letters(duplicates):
    assert [find(duplicates, text) for text in ("!!!", "???", "!!!")] == [None, None, "duplicate"]


def test_shingles_are_runs_of_five_words():
    assert shingles("One, two three\nfour FIVE six") == {
        b"one two three four five",
        b"two three four five six",
    }
    assert shingles(" ".join(WORDS[:2])) == {b"token block"}


def test_datasketch_is_named_where_it_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(MissingExtraError, match=r"phiscope\[train\]"):
        Duplicates(CorpusOptions())
