"""Each way of computing on a CPU keeps the error that docs/performance.md tells of it."""

from copy import deepcopy

import pytest
import torch

from phiscope import MODES, PhiConfig, PhiForCausalLM, pack
from phiscope.inference import prepare
from phiscope.kernels import build

CONFIG = PhiConfig(
    vocab_size=300,
    hidden_size=320,
    intermediate_size=640,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=128,
    rotary_dim=32,
)
LIMITS = {
    "fp32-cpu": 2e-6,
    "bf16-cpu": 2e-2,
    "bf16-fp32-cpu": 2e-6,
    "fp16-fp32-cpu": 2e-6,
    "int8-cpu": 2e-2,
    "int8-fp32-cpu": 2e-6,
    "int4-cpu": 2e-2,
}
"""Relative, of logits, over float64 with the weights as the mode rounds them."""


@pytest.fixture(scope="module")
def model():
    whole = PhiForCausalLM(CONFIG).eval().requires_grad_(False)
    whole.init_weights(torch.Generator().manual_seed(0))
    return whole


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("mode", LIMITS)
@torch.inference_mode()
def test_logits_keep_their_error_over_float64(model, mode, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(build, "find_obstacle", lambda: "none")
    ready = prepare(deepcopy(model).to(MODES[mode].dtype), MODES[mode])
    exact = deepcopy(model).double()
    for name, module in ready.named_modules():
        if isinstance(getattr(module, "weight", None), torch.Tensor):
            exact.get_submodule(name).weight.copy_(module.weight)
            if hasattr(module, "bias"):
                exact.get_submodule(name).bias.copy_(module.bias)
    generator = torch.Generator().manual_seed(1)
    lengths = (1, 3, 12, 60)
    ids, packed = pack([torch.randint(300, (n,), generator=generator).tolist() for n in lengths])
    wanted = exact(ids, packed)
    error = float((ready(ids, packed) - wanted).norm() / wanted.norm())
    assert error < LIMITS[mode]
    assert error > LIMITS[mode] / 100
