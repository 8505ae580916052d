"""Models made ready for a GPU, on a machine without one: what is chosen, said and refused."""

import dataclasses

import pytest
import torch
from oracle import make_model

from phiscope import attention, inference
from phiscope.config import PhiConfig
from phiscope.errors import UnsupportedError
from phiscope.inference import choose_decode_attention, prepare
from phiscope.kernels import triton_check
from phiscope.model import Attention, place_in_steps
from phiscope.packing import pack_lengths
from phiscope.runtime import MODES
from phiscope.weight_only import WeightOnlyLinear

CONFIG = PhiConfig(
    vocab_size=61,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    rotary_dim=8,
)


def attentions(model):
    return [module for module in model.modules() if isinstance(module, Attention)]


def test_decode_attention_falls_back_from_one_to_the_next(monkeypatch):
    flash, fused = MODES["fp16-flash"], MODES["fp16"]
    monkeypatch.setattr(inference, "find_paging_obstacle", lambda: None)
    assert choose_decode_attention(flash, None) == choose_decode_attention(fused, None) == "triton"
    assert choose_decode_attention(flash, "no compiler") == "paged"
    assert choose_decode_attention(fused, "no compiler") == "masked"
    monkeypatch.setattr(inference, "find_paging_obstacle", lambda: "an older torch")
    assert choose_decode_attention(flash, "no compiler") == "masked"


def test_without_triton_decoding_is_plain_and_that_is_said(monkeypatch):
    monkeypatch.setattr(triton_check, "find_obstacle", lambda: "there is no compiler")
    with pytest.warns(RuntimeWarning, match="masked attention of torch.*there is no compiler"):
        model = prepare(make_model(CONFIG), MODES["fp16"])
    for module in attentions(model):
        assert module.place is place_in_steps
        assert module.decode_backend is attention.decode_masked


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_integers_without_triton_are_refused_by_name(monkeypatch, name):
    monkeypatch.setattr(triton_check, "find_obstacle", lambda: "there is no compiler")
    with pytest.raises(UnsupportedError, match=f"mode '{name}' needs Triton: there is no compiler"):
        prepare(make_model(CONFIG), MODES[name])


def test_with_triton_its_kernels_are_used(monkeypatch):
    monkeypatch.setattr(triton_check, "find_obstacle", lambda: None)
    model = prepare(make_model(CONFIG), MODES["int8"])
    assert isinstance(model.lm_head, WeightOnlyLinear)
    for module in attentions(model):
        assert module.place is inference.place_at_once
        assert module.decode_backend is attention.decode_triton


def test_the_check_says_what_is_missing():
    triton_check.find_obstacle.cache_clear()
    obstacle = triton_check.find_obstacle()
    assert (obstacle is None) == torch.cuda.is_available()
    if obstacle is not None:
        assert "torch sees none" in obstacle


def test_placing_at_once_is_left_to_the_steps_where_prompts_run_too():
    model = make_model(dataclasses.replace(CONFIG, num_key_value_heads=2))
    plain = model(torch.tensor([1, 2, 3]), pack_lengths([3]))
    for module in attentions(model):
        module.place = inference.place_at_once
    assert model(torch.tensor([1, 2, 3]), pack_lengths([3])).equal(plain)
