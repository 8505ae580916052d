"""transformers' PhiForCausalLM with the weights of one of our models."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch

from phiscope.config import PhiConfig
from phiscope.model import PhiForCausalLM

transformers = pytest.importorskip("transformers")


def make_model(config: PhiConfig, *, seed: int = 0, dtype: torch.dtype = torch.float64):
    """A random model whose biases and norms are random too, so that none can be forgotten."""
    model = PhiForCausalLM(config).to(dtype).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            centre = float("norm" in name and name.endswith("weight"))
            parameter.normal_(centre, 0.2, generator=generator)
    return model


def make_peer(model: PhiForCausalLM, *, attention: str = "sdpa"):
    """The same model as transformers has it.

    Its "eager" attention takes the softmax in fp32 even of a float64 model: see `exact_softmax`.
    """
    raw = {**model.config.to_dict(), "bos_token_id": 0, "eos_token_id": 0}  # it wants them in range
    config = transformers.PhiConfig(**raw, attn_implementation=attention)
    dtype = model.lm_head.weight.dtype
    peer = transformers.PhiForCausalLM(config).to(dtype).eval().requires_grad_(False)
    heads = (config.num_attention_heads, *[config.num_key_value_heads] * 2)
    peer.load_state_dict(
        _their_names(model.state_dict(), [h * model.config.head_dim for h in heads])
    )
    return peer


@contextmanager
def exact_softmax():
    """Let transformers' eager attention keep float64, which it rounds to fp32 in the softmax."""
    functional = transformers.models.phi.modeling_phi.nn.functional
    original = functional.softmax

    def softmax(x, dim, dtype=None):
        return original(x, dim, dtype=None if x.dtype == torch.float64 else dtype)

    with mock.patch.object(functional, "softmax", softmax):
        yield


def _their_names(state, rows):
    renamed = {}
    for name, tensor in state.items():
        if "qkv_proj" in name:
            for part, piece in zip("qkv", tensor.split(rows), strict=True):
                renamed[name.replace("qkv_proj", f"{part}_proj")] = piece
        else:
            renamed[name] = tensor
    return renamed
