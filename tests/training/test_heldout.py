import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import make_model

from phiscope.packing import pack_lengths
from phiscope.tokenizer import Tokenizer
from phiscope.training.bpe import train_bpe
from phiscope.training.heldout import byte_lengths, measure
from phiscope.training.objective import Objective
from phiscope.training.options import small_config


@pytest.fixture(scope="module")
def model():
    config = small_config(vocab_size=30, hidden_size=16, layers=2, heads=2, context=16)
    return make_model(config, dtype=torch.float32)


def some_tokens(count):
    return np.random.default_rng(0).integers(0, 30, count).astype(np.uint16)


LENGTHS = np.arange(30, dtype=np.uint16)


def nats_of(model, tokens, begin, first, end):
    """The nats of tokens first..end with those from `begin` on before them."""
    ids = torch.from_numpy(tokens[begin:end].astype(np.int64))
    logits = model(ids[:-1], pack_lengths([len(ids) - 1]))
    losses = F.cross_entropy(logits, ids[1:], reduction="none")
    return float(losses[first - begin - 1 :].sum())


def test_one_window_equals_the_plain_forward(model):
    tokens = some_tokens(17)
    figure = measure(Objective(model), tokens, LENGTHS)
    assert figure.nats == pytest.approx(nats_of(model, tokens, 0, 1, 17), rel=1e-5)
    assert figure.num_tokens == 16
    assert figure.num_bytes == int(LENGTHS[tokens[1:]].sum())
    assert figure.bits_per_byte == pytest.approx(figure.nats / math.log(2) / figure.num_bytes)


def test_half_overlapping_windows_have_half_a_window_before_each_token(model):
    tokens = some_tokens(39)
    spans = [(0, 1, 17), (8, 17, 25), (16, 25, 33), (22, 33, 39)]
    wanted = sum(nats_of(model, tokens, *span) for span in spans)
    figure = measure(Objective(model), tokens, LENGTHS, overlap=0.5)
    assert figure.nats == pytest.approx(wanted, rel=1e-5)
    assert figure.num_tokens == 38


@pytest.mark.parametrize("count", [2, 16, 17, 18, 100, 161])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_every_token_but_the_first_is_predicted_once(model, count, overlap):
    tokens = some_tokens(count)
    figure = measure(Objective(model), tokens, LENGTHS, overlap=overlap)
    assert figure.num_tokens == count - 1
    assert figure.num_bytes == int(LENGTHS[tokens[1:]].sum())


def test_a_limit_takes_a_part(model):
    figure = measure(Objective(model), some_tokens(400), LENGTHS, limit=100)
    assert 80 <= figure.num_tokens <= 120


def test_bytes_of_ids_add_up_to_the_text(documents):
    tokenizer = Tokenizer(train_bpe(documents, 340))
    text = documents[0].text + "n\u00e4her"
    lengths = byte_lengths(tokenizer)
    assert int(lengths[tokenizer.encode(text)].sum()) == len(text.encode())
    assert lengths[tokenizer.eos_token_id] == 0
