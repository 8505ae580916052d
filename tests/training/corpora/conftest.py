import pytest
from small_corpora import build, make_byte_tokenizer, write_sentence

from phiscope.training.corpora.shards import Shards


@pytest.fixture(scope="session")
def tokenizer():
    return make_byte_tokenizer()


@pytest.fixture
def texts():
    return [write_sentence(seed) for seed in range(20)]


@pytest.fixture
def folder(tmp_path, texts, tokenizer):
    """A finished corpus of several shards in both parts."""
    build(texts, tokenizer, tmp_path / "corpus", heldout_share=0.4)
    return tmp_path / "corpus"


@pytest.fixture
def shards(folder):
    return Shards.open(folder)
