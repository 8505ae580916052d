from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from phiscope import MODES, PhiConfig, PhiForCausalLM, pack
from phiscope.errors import UnsupportedError
from phiscope.inference import prepare
from phiscope.kernels import build
from phiscope.quantized import (
    FORMATS,
    Int4Linear,
    Int8Linear,
    QuantizedLinear,
    quantize,
    round_rows,
)

CONFIG = PhiConfig(
    vocab_size=100,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    rotary_dim=8,
)
KINDS = [Int8Linear, Int4Linear]
SIZES = [(2560, 64), (130, 77), (64, 51), (33, 7), (1056, 200)]


@pytest.fixture(scope="module")
def model():
    whole = PhiForCausalLM(CONFIG).eval()
    whole.init_weights(torch.Generator().manual_seed(0))
    return whole


def make_linear(width, outs, *, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(width, outs, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "outs"), SIZES)
@torch.inference_mode()
def test_the_kernel_gives_what_the_definition_says(kind, width, outs):
    layer = kind.of(make_linear(width, outs))
    for rows in (1, 2, 3, 5, 8, 13, 16, 17, 40):
        x = torch.randn(rows, width)
        torch.testing.assert_close(layer.multiply(x), layer.multiply_plainly(x))


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_row_does_not_depend_on_the_rows_beside_it(kind):
    layer = kind.of(make_linear(96, 70))
    x = torch.randn(600, 96) * torch.logspace(-3, 3, 600)[:, None]
    whole = layer(x)
    for rows in (1, 2, 4, 7, 16, 17, 513):
        assert layer(x[:rows]).equal(whole[:rows])


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 99))
def test_eight_bits_err_by_half_a_step(width, outs, seed):
    linear = make_linear(width, outs, seed=seed)
    layer = Int8Linear.of(linear)
    assert ((layer.weight - linear.weight).abs() <= layer.scales[:, None] * 0.5001).all()


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 99))
def test_four_bits_err_by_a_fifth_at_most_also_where_groups_are_not_full(width, outs, seed):
    linear = make_linear(width, outs, seed=seed)
    error = (Int4Linear.of(linear).weight - linear.weight).norm(dim=1)
    assert (error < 0.2 * linear.weight.norm(dim=1)).all()


def test_eight_bits_round_gaussian_weights_to_a_hundredth_and_four_to_a_tenth():
    weight = torch.randn(64, 2560)
    linear = nn.Linear(2560, 64)
    linear.weight.data = weight
    for kind, most in ((Int8Linear, 0.01), (Int4Linear, 0.1)):
        error = (kind.of(linear).weight - weight).norm() / weight.norm()
        assert 0.5 * most < error < most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@torch.inference_mode()
def test_what_is_no_number_stays_visible(kind, bad):
    layer = kind.of(make_linear(64, 64))
    x = torch.randn(20, 64)
    x[7, 3] = bad
    for y in (layer.multiply(x), layer.multiply_plainly(x)):
        assert y.isfinite().all(dim=1).tolist() == [row != 7 for row in range(20)]


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_zeros_give_the_bias(kind):
    linear = make_linear(64, 64)
    linear.weight[3] = 0
    layer = kind.of(linear)
    assert layer(torch.zeros(2, 64)).equal(linear.bias.expand(2, -1))
    assert layer(torch.randn(2, 64))[:, 3].equal(linear.bias[3].expand(2))


def test_rows_are_rounded_by_their_own_scales():
    rounded, scales = round_rows(torch.tensor([[1.0, -2.0, 0.5], [100.0, 50.0, 0.0]]))
    assert rounded.tolist() == [[64, -127, 32], [127, 64, 0]]
    torch.testing.assert_close(scales[:, 0], torch.tensor([2.0, 100.0]) / 127)


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_are_refused(name):
    layer = FORMATS[name].of(make_linear(64, 64))
    with pytest.raises(UnsupportedError, match="no gradients"):
        layer(torch.randn(2, 64, requires_grad=True))


@torch.inference_mode()
def test_wide_layers_round_the_weights_alone():
    linear = make_linear(96, 70)
    narrow, wide = Int8Linear.of(linear), Int8Linear.of(linear, wide=True)
    x = torch.randn(30, 96)
    exact = x @ wide.weight.T + linear.bias
    torch.testing.assert_close(wide(x), exact)
    assert (narrow(x) - exact).norm() > 10 * (wide(x) - exact).norm()
    for rows in (1, 2, 3, 8, 11, 16, 17):
        torch.testing.assert_close(wide(x[:rows]), exact[:rows])
    assert type(wide).multiply_widely is not QuantizedLinear.multiply_widely


@pytest.mark.parametrize("mode", ["int8-cpu", "int4-cpu", "int8-fp32-cpu"])
@torch.inference_mode()
def test_a_model_has_the_same_logits_without_kernels(model, mode, monkeypatch):
    ids, packed = pack([[1, 2, 3, 4, 5], [6, 7]])
    ready = prepare(copy_of(model), MODES[mode])
    with_kernels = ready(ids, packed)
    monkeypatch.setattr(build, "find_obstacle", lambda: "none")
    plain = prepare(copy_of(model), MODES[mode])(ids, packed)
    # An activation between two whole numbers may be rounded either way by the last bit of fp32.
    assert (with_kernels - plain).norm() < 5e-3 * plain.norm()


def test_every_linear_layer_is_quantized(model):
    changed = copy_of(model)
    quantize(changed, "int8")
    assert not [name for name, m in changed.named_modules() if isinstance(m, nn.Linear)]
    assert isinstance(changed.lm_head, Int8Linear)


def copy_of(model):
    return deepcopy(model).bfloat16().requires_grad_(False)
