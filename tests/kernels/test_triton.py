"""The Triton kernels against their definitions: on a GPU, or by Triton's interpreter on a CPU.

Triton is a gigabyte and so not among the tests' packages. Where it can be imported, and
TRITON_INTERPRET=1 is set or there is a GPU, these tests run.
"""

import importlib.util
import os

import pytest
import torch
import torch.nn.functional as F
from oracle import make_model

from phiscope.activations.capture import make_step_plan
from phiscope.activations.fixed_plan import FixedPlans
from phiscope.activations.inspection import make_inspection
from phiscope.attention import decode_masked, decode_triton
from phiscope.config import PhiConfig
from phiscope.generation.engine import Engine
from phiscope.generation.fixed_step import Replay
from phiscope.generation.options import GenerationOptions
from phiscope.inference import place_at_once
from phiscope.packing import make_decodes
from phiscope.quantized import FORMATS
from phiscope.rotary import rotate
from phiscope.weight_only import WeightOnlyLinear, multiply_by_triton

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not there"),
    pytest.mark.skipif(
        not IS_INTERPRETED and not torch.cuda.is_available(),
        reason="there is no GPU, and TRITON_INTERPRET=1 is not set",
    ),
]
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SHAPES = [(4, 4, 80), (4, 2, 16), (3, 1, 24)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def error(ours, wanted):
    return float((ours.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
@torch.inference_mode()
def test_attention_to_slots_is_the_definition_and_reads_no_further(heads, kv_heads, dim, dtype):
    lengths, slots = torch.tensor([1, 64, 65, 200]), torch.tensor([3, 0, 4, 1])
    cache = torch.randn(2, 5, 200, kv_heads, dim, device=DEVICE).to(dtype)
    for slot, length in zip(slots, lengths, strict=True):
        cache[:, slot, length:] = torch.nan
    cache[:, 2] = torch.nan
    packed = make_decodes(slots.to(DEVICE), (lengths - 1).to(DEVICE), 200)
    joint = torch.randn(4, heads + 3, dim, device=DEVICE).to(dtype)  # q is a part of a product
    q = joint[:, 1 : heads + 1] * 1
    for query in (q, joint[:, 1 : heads + 1]):
        ours = decode_triton(query, cache[0], cache[1], packed)
        wanted = decode_masked(query.double(), cache[0].double(), cache[1].double(), packed)
        assert ours.dtype == dtype
        assert error(ours, wanted) < TOLERANCES[dtype]


@pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:invalid value")  # numpy's words
@torch.inference_mode()
def test_large_scores_do_not_overflow_and_no_number_stays_visible():
    """|q| of Phi-2 reaches 300, whose products are beyond fp16."""
    cache = (torch.randn(2, 2, 70, 2, 80, device=DEVICE) * 300).half()
    packed = make_decodes(torch.tensor([1, 0]).to(DEVICE), torch.tensor([69, 3]).to(DEVICE), 70)
    q = (torch.randn(2, 2, 80, device=DEVICE) * 300).half()
    wanted = decode_masked(q.double(), cache[0].double(), cache[1].double(), packed)
    assert error(decode_triton(q, *cache, packed), wanted) < 2e-3
    q[0, 1, 3] = torch.nan
    found = decode_triton(q, *cache, packed).isfinite().all(dim=-1)
    assert found.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
@torch.inference_mode()
def test_rotation_and_writing_are_the_definitions(heads, kv_heads, dim, dtype):
    from phiscope.kernels.triton_rotary import rotate_and_write

    joint = torch.randn(3, heads + 2 * kv_heads, dim, device=DEVICE).to(dtype)
    q, k, v = joint.split((heads, kv_heads, kv_heads), dim=1)
    cos, sin = torch.randn(2, 3, 5, device=DEVICE)
    planes = torch.zeros(2, 4, 9, kv_heads, dim, device=DEVICE, dtype=dtype)
    wanted_q, wanted_k, wanted = rotate(q, cos, sin), rotate(k, cos, sin), planes.clone()
    slots, places = torch.tensor([2, 0, 3]).to(DEVICE), torch.tensor([8, 0, 4]).to(DEVICE)
    wanted[0][slots, places], wanted[1][slots, places] = wanted_k, v
    rotate_and_write(q, k, v, (cos, sin), tuple(planes), (slots, places))
    most = TOLERANCES[dtype]
    torch.testing.assert_close(q, wanted_q, rtol=most, atol=most)
    torch.testing.assert_close(planes, wanted, rtol=most, atol=most)
    assert (planes != 0).any(dim=-1).equal((wanted != 0).any(dim=-1))


@pytest.mark.parametrize("points", ["", "q.0, mlp_out.1", "q_rot.1"])
def test_a_generation_by_kernels_is_that_of_plain_steps(points):
    config = PhiConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        rotary_dim=6,
        initializer_range=0.3,
    )
    completions = []
    for replay in (None, Replay(record=lambda work: work, plans=FixedPlans())):
        model = make_model(config, dtype=torch.float32).to(DEVICE)
        if replay is not None:
            model.set_decode_attention("triton")
            for block in model.model.layers:
                block.self_attn.place = place_at_once
        engine = Engine(model, num_slots=4, make_plan=make_step_plan, replay=replay)
        inspect = make_inspection(config, points, (), prompt_length=2) if points else None
        options = GenerationOptions(max_new_tokens=6, ignore_eos=True)
        requests = [engine.submit([row, 3], options, inspect=inspect) for row in (1, 2, 4)]
        completions.append([request.result()[0] for request in requests])
    for plain, ours in zip(*completions, strict=True):
        assert ours.token_ids == plain.token_ids
        for name, rows in plain.states.items():
            torch.testing.assert_close(ours.states[name], rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", [*FORMATS, "floats"])
@pytest.mark.parametrize(("width", "outs"), [(96, 70), (51, 5), (1056, 9)])
@torch.inference_mode()
def test_products_are_those_of_float64(name, width, outs, dtype):
    from phiscope.kernels.triton_linear import multiply

    linear = torch.nn.Linear(width, outs, device=DEVICE, dtype=dtype)
    layer = None if name == "floats" else WeightOnlyLinear(FORMATS[name].of(linear))
    weight = linear.weight if layer is None else layer.weight
    for rows in (1, 2, 3, 8):
        x = torch.randn(rows, width, device=DEVICE).to(dtype)
        ours = (
            multiply(x, weight, None, linear.bias)
            if layer is None
            else multiply_by_triton(layer, x)
        )
        wanted = F.linear(x.double(), weight.double(), linear.bias.double())
        assert ours.dtype == dtype
        assert error(ours, wanted) < TOLERANCES[dtype]


@pytest.mark.parametrize("name", FORMATS)
@torch.inference_mode()
def test_products_without_a_bias(name):
    layer = WeightOnlyLinear(FORMATS[name].of(torch.nn.Linear(64, 33, bias=False, device=DEVICE)))
    x = torch.randn(2, 64, device=DEVICE)
    assert error(multiply_by_triton(layer, x), layer(x)) < 2e-6
