import dataclasses

import pytest
import torch
from oracle import make_model

from phiscope.activations.points import POINTS, Point
from phiscope.config import PhiConfig

CONFIG = PhiConfig(
    vocab_size=61,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    rotary_dim=8,
    initializer_range=0.2,
)
VARIANTS = {
    "phi": CONFIG,
    "grouped": dataclasses.replace(CONFIG, num_key_value_heads=2),
    "qk_layernorm": dataclasses.replace(CONFIG, qk_layernorm=True, num_key_value_heads=2),
}


@pytest.fixture(scope="session")
def models():
    """One float64 model per variant; tests do not change them."""
    return {name: make_model(config) for name, config in VARIANTS.items()}


@pytest.fixture(scope="session")
def model(models):
    return models["phi"]


@pytest.fixture(scope="session")
def every_point():
    """All points of a model of three blocks, in the order a forward computes them."""
    named = [
        Point(kind.name, layer)
        for kind in POINTS.values()
        for layer in (range(3) if kind.in_block else [None])
    ]
    return sorted(named)


@pytest.fixture
def ids():
    """Three sequences of different lengths."""
    generator = torch.Generator().manual_seed(5)
    lengths = (7, 1, 12)
    return [torch.randint(0, 61, (n,), generator=generator).tolist() for n in lengths]
