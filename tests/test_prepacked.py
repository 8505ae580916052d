import copy

import pytest
import torch
from torch import nn

from phiscope.errors import UnsupportedError
from phiscope.prepacked import PrepackedLinear, prepack, unpack
from phiscope.runtime import find_prepacking_obstacle

CPU = torch.device("cpu")
DTYPES = [
    dtype
    for dtype in (torch.float32, torch.bfloat16)
    if find_prepacking_obstacle(CPU, dtype) is None
]
pytestmark = pytest.mark.skipif(not DTYPES, reason="this build of torch lacks oneDNN")


def make_linear(dtype=torch.float32, *, bias=True):
    torch.manual_seed(0)
    return nn.Linear(48, 80, bias).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (2, 3, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_prepacked_layer_gives_what_the_plain_one_gives(dtype, shape, bias):
    linear, x = make_linear(dtype, bias=bias), torch.randn(shape).to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(PrepackedLinear(linear)(x), linear(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_comes_back_to_the_bit(dtype):
    linear = make_linear(dtype)
    packed = PrepackedLinear(linear)
    assert torch.equal(packed.weight, linear.weight)
    assert torch.equal(packed.unpack().weight, linear.weight)
    assert packed.state_dict().keys() == linear.state_dict().keys()
    assert torch.equal(packed.state_dict()["weight"], linear.weight)


def test_layers_are_replaced_but_those_that_share_an_embedding():
    model = nn.ModuleDict(
        {"embed": nn.Embedding(80, 48), "a": make_linear(), "head": make_linear()}
    )
    model["head"].weight = model["embed"].weight
    before = copy.deepcopy(model.state_dict())
    prepack(model)
    assert [type(x) for x in model.values()] == [nn.Embedding, PrepackedLinear, nn.Linear]
    unpack(model)
    assert [type(x) for x in model.values()] == [nn.Embedding, nn.Linear, nn.Linear]
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


def test_layers_of_other_kinds_are_left_alone():
    class Quantized(nn.Linear):
        pass

    model = nn.Sequential(Quantized(4, 4))
    prepack(model)
    assert type(model[0]) is Quantized


def test_gradients_and_other_dtypes_are_refused():
    packed = PrepackedLinear(make_linear())
    with pytest.raises(UnsupportedError, match="pass no gradients on"):
        packed(torch.randn(1, 48, requires_grad=True))
    with pytest.raises(UnsupportedError, match=r"take no torch\.float64"):
        packed(torch.randn(1, 48, dtype=torch.float64))


def test_converting_and_moving_are_refused():
    packed = PrepackedLinear(make_linear())
    assert packed.to("cpu") is packed
    with pytest.raises(UnsupportedError, match="unpack first"):
        packed.half()
    with pytest.raises(UnsupportedError, match="unpack first"):
        packed.to("meta")


def test_what_stands_in_the_way_is_said():
    assert "are on cuda" in find_prepacking_obstacle(torch.device("cuda"), torch.float32)
    assert "no kernel" in find_prepacking_obstacle(CPU, torch.float64)
