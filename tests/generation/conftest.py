import dataclasses
import itertools

import pytest
import tokenizers
import torch
from oracle import make_model

from phiscope.config import PhiConfig
from phiscope.generation.engine import Engine
from phiscope.model import PhiForCausalLM
from phiscope.packing import pack
from phiscope.tokenizer import Tokenizer, byte_symbols

NUM_TOKENS = 257  # a byte each, and the end token
CONFIG = PhiConfig(
    vocab_size=264,  # with spare rows
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    rotary_dim=4,
    initializer_range=0.3,
    bos_token_id=256,
    eos_token_id=256,
)


@pytest.fixture(scope="session")
def config():
    return CONFIG


@pytest.fixture(scope="session")
def model():
    """float64, so that no tie is broken by rounding; tests do not change it."""
    return make_model(CONFIG)


@pytest.fixture(scope="session")
def grouped_model():
    return make_model(dataclasses.replace(CONFIG, num_key_value_heads=2, qk_layernorm=True))


@pytest.fixture(scope="session")
def tokenizer():
    """Every byte is a token: characters beyond ASCII are split over several."""
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.add_special_tokens([tokenizers.AddedToken("<|endoftext|>")])
    return Tokenizer(backend)


@pytest.fixture
def engine(model, tokenizer):
    return Engine(model, tokenizer, num_slots=3, token_budget=16)


@pytest.fixture
def generate(model, tokenizer):
    """Run one request in an engine of its own, without chunks, and give its completions."""

    def run(prompt, options, **kwargs):
        return Engine(model, tokenizer, num_slots=1).submit(prompt, options, **kwargs).result()

    return run


@pytest.fixture
def make_chain_engine(tokenizer):
    """An engine whose model says these bytes, of which none may repeat, one after the other."""

    def make(text, **kwargs):
        ids = list(text.encode() if isinstance(text, str) else text)
        return Engine(make_chain_model(ids), tokenizer, **kwargs)

    return make


@pytest.fixture(scope="session")
def whole_logits(model):
    """Logits (T, V) of a sequence in one forward without a cache: what the engine must equal."""

    def run(ids):
        tokens, packed = pack([ids])
        return model(tokens, packed)

    return run


def make_chain_model(ids):
    """A model whose head knows one successor for each token, and whose blocks add nothing."""
    assert len(set(ids)) == len(ids), "a token has one successor"
    config = dataclasses.replace(CONFIG, hidden_size=264, num_hidden_layers=1)
    model = PhiForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    model.model.embed_tokens.weight.copy_(torch.eye(264))
    model.model.final_layernorm.weight.fill_(1.0)
    for token_id, successor in itertools.pairwise(ids):
        model.lm_head.weight[successor, token_id] = 1.0
    return model
