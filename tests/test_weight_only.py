import pytest
import torch
import torch.nn.functional as F

from phiscope.errors import UnsupportedError
from phiscope.quantized import FORMATS
from phiscope.weight_only import WeightOnlyLinear, round_weights


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("width", "outs"), [(2560, 64), (130, 77), (33, 7), (40, 4200)])
@torch.inference_mode()
def test_the_weights_are_those_of_the_quantized_layer(name, width, outs):
    torch.manual_seed(0)
    rounded = FORMATS[name].of(torch.nn.Linear(width, outs))
    layer = WeightOnlyLinear(rounded)
    assert layer.weight.equal(rounded.weight)
    x = torch.randn(9, width)
    torch.testing.assert_close(layer(x), F.linear(x, rounded.weight, rounded.bias))


@torch.inference_mode()
def test_few_rows_go_to_the_kernel_and_more_do_not():
    calls = []
    rounded = FORMATS["int8"].of(torch.nn.Linear(32, 8))
    layer = WeightOnlyLinear(rounded, lambda layer, x: calls.append(len(x)) or x)
    for rows in (1, 8, 9):
        layer(torch.randn(rows, 32))
    assert calls == [1, 8]


def test_every_linear_layer_is_rounded():
    model = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.Sequential(torch.nn.Linear(8, 4)))
    round_weights(model, "int4", None)
    kinds = [type(module) for module in (model[0], model[1][0])]
    assert kinds == [WeightOnlyLinear, WeightOnlyLinear]
    with pytest.raises(UnsupportedError, match="no gradients"):
        model(torch.randn(2, 32, requires_grad=True))
