import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from phiscope.attention import eager, native
from phiscope.kernels import calls
from phiscope.packing import pack_lengths
from phiscope.rotary import rotate

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = {torch.float32: 1e-6, torch.bfloat16: 6e-3}
SHAPES = [(8, 8, 32), (4, 2, 16), (32, 32, 80), (4, 1, 24), (2, 2, 7)]


def error(ours, wanted):
    return float((ours.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize(
    ("weight", "x"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize(("width", "outs"), [(2560, 300), (130, 77), (64, 51), (3, 1)])
def test_products_are_those_of_float64(weight, x, width, outs):
    torch.manual_seed(0)
    w, bias = torch.randn(outs, width).to(weight), torch.randn(outs).to(weight)
    for rows in (1, 2, 3, 4, 5, 8, 9, 16):
        some = torch.randn(rows, width).to(x)
        wanted = F.linear(some.double(), w.double(), bias.double())
        assert error(calls.linear(some, w, bias), wanted) < (1e-6 if x == torch.float32 else 3e-3)
        without = F.linear(some.double(), w.double())
        assert error(calls.linear(some, w, None), without) < (1e-6 if x == torch.float32 else 3e-3)


@pytest.mark.parametrize("weight", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("width", "outs"), [(2560, 300), (130, 77), (64, 51), (1100, 65), (3, 1)])
def test_wide_products_of_many_rows_are_those_of_float64(width, outs, weight):
    torch.manual_seed(0)
    w, bias = torch.randn(outs, width).to(weight), torch.randn(outs).to(weight)
    for rows in (17, 70, 520):
        x = torch.randn(rows, width)
        wanted = F.linear(x.double(), w.double(), bias.double())
        assert error(calls.linear_wide(x, w, bias), wanted) < 1e-6
        assert error(calls.linear_wide(x, w, None), F.linear(x.double(), w.double())) < 1e-6


def test_every_number_of_half_precision_is_widened_as_it_is():
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    w = halves[:, None].contiguous()
    for product, rows in ((calls.linear, 1), (calls.linear_wide, 17)):
        got = product(torch.ones(rows, 1), w, None)[0]
        torch.testing.assert_close(got, halves.float(), rtol=0, atol=0, equal_nan=True)


def test_a_row_of_a_product_does_not_depend_on_the_rows_beside_it():
    torch.manual_seed(0)
    w, x = torch.randn(99, 300), torch.randn(16, 300)
    whole = calls.linear(x, w, None)
    for rows in range(1, 16):
        assert calls.linear(x[:rows], w, None).equal(whole[:rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
@torch.inference_mode()
def test_attention_is_that_of_the_definition(dtype, heads, kv_heads, dim):
    torch.manual_seed(0)
    for lengths in ([1], [5], [2, 7, 30], [1, 1, 1], [70, 3]):
        packed = pack_lengths(lengths)
        q, k, v = (torch.randn(sum(lengths), h, dim).to(dtype) for h in (heads, kv_heads, kv_heads))
        wanted = eager(q.double(), k.double(), v.double(), packed)
        assert error(native(q, k, v, packed), wanted) < DTYPES[dtype]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 40)), min_size=1, max_size=4))
@torch.inference_mode()
def test_attention_reads_slots_and_goes_on_from_known_tokens(pairs):
    lengths, starts = zip(*pairs, strict=True)
    slots = [5 - i for i in range(len(pairs))]
    packed = pack_lengths(lengths, starts=starts, slots=slots)
    q = torch.randn(sum(lengths), 6, 20)
    k, v = torch.randn(2, 6, 50, 3, 20)
    torch.testing.assert_close(native(q, k, v, packed), eager(q, k, v, packed))


@torch.inference_mode()
def test_a_sequence_does_not_depend_on_the_sequences_beside_it():
    torch.manual_seed(0)
    packed = pack_lengths([20, 1, 3, 9])
    q, k, v = torch.randn(3, 33, 4, 16)
    together = native(q, k, v, packed)
    for span in packed.spans():
        alone = native(q[span], k[span], v[span], pack_lengths([span.stop - span.start]))
        assert together[span].equal(alone)


@pytest.mark.parametrize("rows", [1, 12])
@torch.inference_mode()
def test_what_is_no_number_stays_visible_in_attention(rows):
    q, k, v = torch.randn(3, rows, 4, 16)
    q[0, 0, 0] = torch.nan
    q[0, 1, 0] = torch.inf
    output = native(q, k, v, pack_lengths([rows]))
    assert output[0].isfinite().all(dim=1).tolist() == [False, False, True, True]
    assert output[1:].isfinite().all()


@torch.inference_mode()
def test_large_scores_do_not_overflow():
    """|q| of Phi-2 reaches 300."""
    q, k, v = torch.randn(3, 30, 2, 80) * 300
    packed = pack_lengths([30])
    torch.testing.assert_close(native(q, k, v, packed), eager(q, k, v, packed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_is_the_tanh_formula_in_place(dtype):
    x = torch.cat([torch.linspace(-30, 30, 1001), torch.tensor([0.0, 1e30, -1e30])]).to(dtype)
    wanted = F.gelu(x.double(), approximate="tanh")
    result = calls.gelu(x)
    assert result is x
    torch.testing.assert_close(x.double(), wanted, rtol=DTYPES[dtype] * 4, atol=1e-6)


def test_gelu_keeps_what_is_no_number():
    assert calls.gelu(torch.full((40,), torch.nan)).isnan().all()
    assert calls.gelu(torch.full((40,), torch.inf)).isinf().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 30])
def test_rotation_in_place_is_the_rotation(dtype, tokens):
    torch.manual_seed(0)
    joint = torch.randn(tokens, 12, 20).to(dtype)
    angles = torch.rand(tokens, 5) * 6
    q, rest = joint[:, :4], joint[:, 4:].clone()
    wanted = rotate(q, angles.cos(), angles.sin())
    result = calls.rotate(q, angles.cos(), angles.sin())
    torch.testing.assert_close(result, wanted, rtol=1e-6, atol=1e-6 if dtype.itemsize > 2 else 8e-3)
    assert result.data_ptr() == joint.data_ptr()
    assert joint[:, 4:].equal(rest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 30])
def test_placing_turns_and_keeps_what_the_steps_would(dtype, tokens):
    torch.manual_seed(0)
    joint = torch.randn(tokens, 8, 20).to(dtype)
    q, k, v = joint.split([4, 2, 2], dim=1)
    angles = torch.rand(tokens, 5) * 6
    cos, sin = angles.cos(), angles.sin()
    wanted_q, wanted_k = (calls.rotate(x.clone(), cos, sin) for x in (q, k))
    layer = tuple(torch.full((3, 20, 2, 20), 7.0).to(dtype) for _ in range(2))
    places = torch.randperm(60)[:tokens]
    got = calls.place(q, k, v, (cos, sin), layer, places)
    assert all(a.equal(b) for a, b in zip(got, (wanted_q, wanted_k), strict=True))
    for kept, wanted in zip(layer, (wanted_k, v), strict=True):
        rows = kept.flatten(0, 1)
        assert rows[places].equal(wanted)
        others = torch.ones(60, dtype=torch.bool).index_fill(0, places, False)
        assert rows[others].eq(7).all()


@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("kinds", [(F32, F32), (BF16, F32), (F16, F32), (BF16, BF16)])
def test_layer_norm_is_as_exact_as_torchs(kinds, offset):
    torch.manual_seed(0)
    weight_dtype, dtype = kinds
    for width in (1, 7, 64, 2560):
        x = (torch.randn(20, width) * 2 + offset).to(dtype)
        weight, bias = torch.rand(width).to(weight_dtype) + 0.5, torch.randn(width).to(weight_dtype)
        wide = F.layer_norm(x.double(), (width,), weight.double(), bias.double(), 1e-5)
        theirs = F.layer_norm(x.float(), (width,), weight.float(), bias.float(), 1e-5)
        ours = calls.layer_norm(x, weight, bias, 1e-5)
        worst = (theirs.to(dtype).double() - wide).abs().max()
        assert (ours.double() - wide).abs().max() <= 1.1 * worst + 1e-6


def test_layer_norm_keeps_what_is_no_number():
    x = torch.zeros(3, 40)
    x[0, 39], x[1, 0] = torch.nan, torch.inf
    y = calls.layer_norm(x, torch.ones(40), torch.zeros(40), 1e-5)
    assert y[:2].isnan().any(dim=1).all()
    assert y[2].eq(0).all()
