"""Blocks in one call: the same bits as step by step, and never where something stands between."""

from contextlib import contextmanager

import pytest
import torch
from oracle import make_model
from torch import nn

from phiscope import MODES, PhiConfig
from phiscope.activations.capture import make_step_plan
from phiscope.activations.edits import Add
from phiscope.activations.inspection import make_inspection
from phiscope.activations.points import Point
from phiscope.cache import KVCache
from phiscope.inference import prepare
from phiscope.kernels import build, calls
from phiscope.model import run_in_turn
from phiscope.packing import pack_lengths

CONFIG = PhiConfig(
    vocab_size=96,
    hidden_size=96,
    intermediate_size=130,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rotary_dim=6,
)
CPU_MODES = [name for name, mode in MODES.items() if mode.device == "cpu"]

pytestmark = pytest.mark.skipif(build.find_obstacle() is not None, reason="no C++ compiler")


def load(name):
    mode = MODES[name]
    return prepare(make_model(CONFIG, dtype=mode.dtype), mode)


class Sequences:
    """Three sequences in slots; the second goes on from three tokens."""

    def __init__(self, model):
        self.cache = KVCache(CONFIG, num_slots=4, num_places=32, dtype=model.model.hidden_dtype)
        self.cache.data.normal_(generator=torch.Generator().manual_seed(0))
        self.packed = pack_lengths([1, 4, 1], starts=[7, 3, 0], slots=[2, 0, 3])
        self.ids = torch.arange(6) * 11

    def run(self, model, plan=None):
        """Logits, and what the cache holds afterwards."""
        with torch.inference_mode():
            logits = model(self.ids, self.packed, cache=self.cache, plan=plan)
            return logits, self.cache.data.clone()


@contextmanager
def in_steps(model):
    """All blocks go step by step meanwhile."""
    running, model.model.run_blocks = model.model.run_blocks, run_in_turn
    yield
    model.model.run_blocks = running


@pytest.fixture
def list_calls(monkeypatch):
    """How many blocks each call of the kernel had."""
    counted, run_blocks = [], calls.run_blocks

    def counting(blocks, *args, **options):
        counted.append(len(blocks))
        return run_blocks(blocks, *args, **options)

    monkeypatch.setattr(calls, "run_blocks", counting)
    return lambda: list(counted)


@pytest.mark.parametrize("name", CPU_MODES)
def test_one_call_gives_the_bits_of_the_steps(name, list_calls):
    model = load(name)
    with in_steps(model):
        wanted = Sequences(model).run(model)
    assert list_calls() == []
    got = Sequences(model).run(model)
    assert list_calls() == [CONFIG.num_hidden_layers]
    assert all(a.equal(b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("point", ["ln_out", "q", "k_rot", "z", "attn_out", "mlp_act", "mlp_out"])
def test_a_block_somebody_looks_into_goes_step_by_step(point, list_calls):
    model = load("int8-cpu")
    plain = Sequences(model).run(model)
    sequences = Sequences(model)
    inspection = make_inspection(CONFIG, f"{point}.1")
    plan = make_step_plan(sequences.packed, [None, inspection, None])
    got = sequences.run(model, plan)
    assert list_calls() == [CONFIG.num_hidden_layers, 1, 1]
    assert all(a.equal(b) for a, b in zip(got, plain, strict=True))
    assert plan.rows(1)[f"{point}.1"].isfinite().all()


def test_a_block_whose_maps_are_read_goes_step_by_step(list_calls):
    model = load("fp32-cpu")
    sequences = Sequences(model)
    plan = make_step_plan(sequences.packed, [make_inspection(CONFIG, "attn_entropy.0"), None, None])
    sequences.run(model, plan)
    assert list_calls() == [CONFIG.num_hidden_layers - 1]
    assert plan.rows(0)["attn_entropy.0"].shape == (1, 6)


POINTS = [f"{name}.{layer}" for name in ("resid_pre", "resid_post") for layer in range(3)]


@pytest.mark.parametrize(
    ("steered", "sizes"), [([], [3]), (["resid_pre.2"], [2, 1]), (["resid_post.0"], [1, 2]),
                           (["resid_pre.0", "resid_post.2"], [3]), (POINTS, [1, 1, 1])]
)  # fmt: skip
def test_what_lies_between_blocks_is_read_and_steered(steered, sizes, list_calls):
    model = load("int4-cpu")
    direction = torch.randn(CONFIG.hidden_size)
    places = [name.split(".") for name in steered]
    edits = [Add(Point(name, int(i)), vector=direction, scale=3.0) for name, i in places]
    inspection = make_inspection(CONFIG, POINTS, edits)

    def run(model):
        sequences = Sequences(model)
        plan = make_step_plan(sequences.packed, [None, inspection, None])
        return sequences.run(model, plan)[0], plan.rows(1)

    got, rows = run(model)
    assert list_calls() == sizes
    with in_steps(model):
        wanted, wanted_rows = run(model)
    assert got.equal(wanted)
    assert got.equal(Sequences(model).run(model)[0]) != bool(steered)
    assert rows.keys() == wanted_rows.keys() == set(POINTS)
    assert all(rows[name].equal(wanted_rows[name]) for name in POINTS)


def change_weights(model):
    model.model.layers[1].mlp.fc1.weight.data = torch.randn_like(
        model.model.layers[1].mlp.fc1.weight
    )


def write_into_weights(model):
    model.model.layers[1].mlp.fc1.weight.mul_(2)


def put_a_layer_in_place(model):
    model.model.layers[1].self_attn.dense = nn.Linear(96, 96)


def wrap_a_layer(model):
    mlp = model.model.layers[1].mlp
    mlp.fc2 = nn.Sequential(mlp.fc2, nn.Softsign())


def hook_a_layer(model):
    model.model.layers[1].mlp.fc1.register_forward_hook(lambda *args: args[-1] * 2)


def hook_a_layers_input(model):
    model.model.layers[1].mlp.register_forward_pre_hook(lambda _, args: (args[0] * 2, args[1]))


def patch_a_forward(model):
    norm = model.model.layers[1].input_layernorm
    norm.forward = lambda x: type(norm).forward(norm, x) * 2


def choose_another_attention(model):
    model.set_attention("eager")
    model.model.layers[1].mlp.fc1.weight.mul_(2)


def choose_another_activation(model):
    model.model.layers[1].mlp.activation = torch.relu


CHANGES = [
    change_weights,
    write_into_weights,
    put_a_layer_in_place,
    wrap_a_layer,
    hook_a_layer,
    hook_a_layers_input,
    patch_a_forward,
    choose_another_attention,
    choose_another_activation,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_users_do_to_the_model_is_never_passed_over(change):
    model = load("fp32-cpu")
    before, _ = Sequences(model).run(model)
    torch.manual_seed(0)
    with torch.no_grad():
        change(model)
    for block in model.model.layers:
        block.eval()
    got, _ = Sequences(model).run(model)
    assert not got.equal(before)
    with in_steps(model):
        assert got.equal(Sequences(model).run(model)[0])


def test_many_rows_go_step_by_step(list_calls):
    model = load("fp32-cpu")
    cache = KVCache(CONFIG, num_slots=1, num_places=32, dtype=torch.float32)
    with torch.inference_mode():
        model(torch.arange(17), pack_lengths([17], slots=[0]), cache=cache)
    assert list_calls() == []
