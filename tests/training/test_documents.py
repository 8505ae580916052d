import numpy as np
import pytest
import torch

from phiscope.tokenizer import Tokenizer
from phiscope.training.bpe import train_bpe
from phiscope.training.documents import Windows, read_tokens, write_tokens


@pytest.fixture
def windows():
    return Windows(np.arange(1, 20 * 8 + 1, dtype=np.uint16), 8, seed=3)


def test_each_token_is_a_target_once_per_epoch(windows):
    for epoch in range(3):
        targets = [windows.batch(step, 4).targets for step in range(epoch * 5, epoch * 5 + 5)]
        assert torch.cat(targets).sort().values.tolist() == list(range(1, 161))


def test_a_target_is_the_token_behind_its_input(windows):
    batch = windows.batch(2, 4)
    assert batch.lengths == [8] * 4
    assert torch.equal(batch.targets, batch.input_ids % 160 + 1)


def test_a_batch_depends_on_its_step_alone(windows):
    fresh = Windows(windows.tokens, 8, seed=3)
    for step in range(12):
        windows.batch(step, 4)
    assert torch.equal(windows.batch(7, 4).input_ids, fresh.batch(7, 4).input_ids)


def test_epochs_and_seeds_differ(windows):
    other = Windows(windows.tokens, 8, seed=4)
    first = windows.batch(0, 20).input_ids
    assert not torch.equal(first, windows.batch(1, 20).input_ids)
    assert not torch.equal(first, other.batch(0, 20).input_ids)


def test_written_documents_are_read_back_with_an_end_each(documents, tmp_path):
    tokenizer = Tokenizer(train_bpe(documents, 340))
    count = write_tokens(documents, tokenizer, tmp_path / "tokens", multiple_of=16)
    ids = read_tokens(tmp_path / "tokens")
    text = "".join(one.text + "<|endoftext|>" for one in documents)
    assert len(ids) == count
    assert count % 16 == 0
    assert tokenizer.decode(ids.tolist()).removesuffix("<|endoftext|>" * 15).startswith(text)


def test_an_end_written_in_a_text_does_not_end_its_document(documents, tmp_path):
    tokenizer = Tokenizer(train_bpe(documents, 340))
    forged = [type(documents[0])("forged", "one <|endoftext|> two")]
    write_tokens(forged, tokenizer, tmp_path / "tokens")
    assert read_tokens(tmp_path / "tokens").tolist().count(tokenizer.eos_token_id) == 1


def test_tokens_that_do_not_fill_windows_are_refused():
    with pytest.raises(ValueError, match="9 tokens are no multiple of the windows' length 8"):
        Windows(np.zeros(9, dtype=np.uint16), 8, seed=0)
