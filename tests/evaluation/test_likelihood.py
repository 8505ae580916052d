import pytest
import torch
from oracle import make_model, make_peer

from phiscope.config import PhiConfig
from phiscope.evaluation import likelihood
from phiscope.evaluation.likelihood import score_tokens

CONFIG = PhiConfig(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    rotary_dim=8,
    initializer_range=0.3,
)
IDS = [5, 9, 11, 80, 3, 3, 42]


@pytest.fixture(scope="module")
def model():
    return make_model(CONFIG)


def test_log_likelihood_and_perplexity_are_those_of_transformers(model):
    ids = torch.tensor([IDS])
    loss = float(make_peer(model)(ids, labels=ids).loss)
    score = score_tokens(model, IDS)
    assert score.log_likelihood == pytest.approx(-loss * (len(IDS) - 1), rel=1e-6)
    assert score.perplexity == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-5)
    assert score.token_ids == IDS[1:]


def test_the_score_does_not_depend_on_how_many_rows_the_head_takes(model, monkeypatch):
    whole = score_tokens(model, IDS)
    monkeypatch.setattr(likelihood, "HEAD_ROWS", 2)
    assert score_tokens(model, IDS).logprobs == pytest.approx(whole.logprobs, abs=1e-12)


def test_one_token_has_nothing_to_score(model):
    with pytest.raises(ValueError, match="two tokens at least, got 1"):
        score_tokens(model, [5])
