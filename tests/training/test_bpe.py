import pytest

from phiscope.tokenizer import Tokenizer
from phiscope.training.bpe import END_TOKEN, train_bpe, whitespace_runs


def test_ids_run_as_in_phis_tokenizer(documents):
    backend = train_bpe(documents, 340)
    runs = whitespace_runs()
    end = 340 - len(runs) - 1
    assert backend.get_vocab_size() == 340
    assert backend.token_to_id(END_TOKEN) == end
    assert [backend.token_to_id(run) for run in runs] == list(range(end + 1, 340))
    assert (runs[0], runs[29], runs[30], runs[-1]) == (" " * 31, "  ", "\t" * 9, "\t\t")


def test_text_comes_back_to_the_letter(documents):
    tokenizer = Tokenizer(train_bpe(documents, 340))
    text = documents[0].text + "\t\t\tn\u00e4her \u4e2d\n\n" + " " * 77 + "x  \n" + END_TOKEN
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, allow_special=False)) == text


def test_an_indent_is_one_token(documents):
    backend = train_bpe(documents, 340)
    assert backend.encode("        x").tokens == [" " * 8, "x"]


def test_training_twice_gives_the_same_tokenizer(documents):
    assert train_bpe(documents, 340).to_str() == train_bpe(documents, 340).to_str()


def test_a_vocabulary_too_small_for_the_bytes_is_refused(documents):
    with pytest.raises(ValueError, match="at least 295 are needed"):
        train_bpe(documents, 294)
