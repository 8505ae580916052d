import pytest
import torch

from phiscope.quantized import Int4Linear, Int8Linear
from phiscope.rounding import round_groups

KINDS = [Int8Linear, Int4Linear]
SIZES = [(2560, 64), (130, 77), (64, 51), (33, 7), (32, 200)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_weight(width, outs, dtype=torch.float32):
    """Outputs of all sizes, one of zeros, and one whose scale is hardly a number."""
    torch.manual_seed(0)
    weight = torch.randn(outs, width) * torch.logspace(-3, 2, outs)[:, None]
    weight[1], weight[2] = 0, weight[2] * (1e-4 if dtype == torch.float16 else 1e-38)
    return weight.to(dtype)


def rounded_both_ways(kind, weight):
    """What is stored by the kernel, and by the definition."""
    states = []
    for plainly in (False, True):
        layer = kind(weight.shape[1], weight.shape[0], bias=False, wide=False)
        if plainly:
            layer.round_plainly(weight, *(getattr(layer, name) for name in layer.stored_names))
        else:
            layer.fill(weight, 0)
        states.append(layer.state_dict())
    return states


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "outs"), SIZES)
def test_the_kernel_rounds_bit_for_bit_as_the_definition(kind, width, outs, dtype):
    kernel, plain = rounded_both_ways(kind, make_weight(width, outs, dtype))
    for name in kernel:
        assert kernel[name].equal(plain[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_half_precision_is_read_as_what_it_is(kind):
    bits = torch.arange(2**16).to(torch.int16).view(256, 256)
    halves = bits.view(torch.float16).nan_to_num(1.0, 1.0, 1.0)
    assert halves.unique().numel() == 2**16 - 2**11 - 1  # all but NaN, infinities, and one zero
    layers = [kind(256, 256, bias=False, wide=False) for _ in range(2)]
    for layer, weight in zip(layers, (halves, halves.float()), strict=True):
        layer.fill(weight, 0)
    for name, part in layers[0].state_dict().items():
        assert part.equal(layers[1].state_dict()[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_output_with_what_is_no_number_gives_none_and_the_others_are_as_they_were(kind, bad):
    weight = make_weight(64, 70)
    sound = kind(64, 70, bias=False, wide=False)
    sound.fill(weight, 0)
    weight[5, 9] = bad
    for state in rounded_both_ways(kind, weight):
        layer = kind(64, 70, bias=False, wide=False)
        layer.load_state_dict(state)
        y = layer(torch.ones(1, 64))[0]
        assert y.isfinite().tolist() == [out != 5 for out in range(70)]
        others = torch.arange(70) != 5
        assert y[others].equal(sound(torch.ones(1, 64))[0, others])


@pytest.mark.parametrize("kind", KINDS)
def test_parts_filled_in_one_by_one_are_the_whole(kind):
    weight = make_weight(96, 300)
    whole, parts = (kind(96, 300, bias=False, wide=False) for _ in range(2))
    whole.fill(weight, 0, threads=2)
    for first in (128, 0, 192):
        parts.fill(weight[first : 128 if first == 0 else 192 if first == 128 else 300], first)
    for name, part in whole.state_dict().items():
        assert part.equal(parts.state_dict()[name])


def test_four_bits_take_the_multiplier_that_errs_least():
    units = torch.randn(3, 5, 32) * 30
    q, m = round_groups(units)
    error = (q * m[..., None] - units).square().sum(-1)
    for other in range(1, 17):
        rounded = (units / other).round().clamp(-8, 7) * other
        assert (error <= (rounded - units).square().sum(-1) + 1e-3).all()


def test_of_multipliers_that_err_alike_it_is_the_smallest():
    q, m = round_groups(torch.zeros(1, 1, 32))
    assert (q.abs().max(), m.item()) == (0, 1)
