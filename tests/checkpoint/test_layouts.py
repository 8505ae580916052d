import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phiscope.checkpoint.layouts import (
    LAYOUTS,
    check_shapes,
    detect_layout,
    find_pieces,
    modernise,
    our_shapes,
    stored_shapes,
)
from phiscope.config import PRESETS, PhiConfig
from phiscope.errors import CheckpointError, UnsupportedError
from phiscope.model import PhiForCausalLM

SMALL = PhiConfig(
    vocab_size=96,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    rotary_dim=4,
)
QKV = "model.layers.1.self_attn.qkv_proj.weight"


@pytest.mark.parametrize(("layout", "count"), [("A", 325), ("B", 325), ("C", 325), ("D", 453)])
def test_phi_2_has_its_published_number_of_tensors(layout, count):
    assert len(stored_shapes(PRESETS["phi-2"], layout)) == count


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("A", ("layers.0.wte.weight", "layers.1.mixer.Wqkv.bias", "layers.3.ln.weight")),
        ("A", ("layers.2.ln.bias", "layers.2.mlp.fc1.weight", "layers.3.linear.bias")),
        ("B", ("transformer.embd.wte.weight", "transformer.h.0.mixer.out_proj.bias")),
        ("B", ("transformer.h.1.ln.weight", "lm_head.ln.bias", "lm_head.linear.weight")),
        ("C", ("model.embed_tokens.weight", "model.layers.1.self_attn.query_key_value.bias")),
        ("C", ("model.layers.0.input_layernorm.bias", "model.final_layernorm.weight")),
        ("D", ("model.layers.1.self_attn.k_proj.bias", "model.layers.0.self_attn.dense.bias")),
        ("D", ("model.layers.1.mlp.fc2.weight", "lm_head.weight", "lm_head.bias")),
    ],
)
def test_layouts_have_their_published_names(layout, names):
    assert set(names) <= set(stored_shapes(SMALL, layout))


@pytest.mark.parametrize("layers", [None, 0, 1])
@pytest.mark.parametrize("qk_layernorm", [False, True])
def test_our_shapes_are_the_models(layers, qk_layernorm):
    config = dataclasses.replace(SMALL, qk_layernorm=qk_layernorm, num_key_value_heads=2)
    with torch.device("meta"):
        model = PhiForCausalLM(config, layers=layers)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert our_shapes(config, layers=layers) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_the_shapes_hold_all_parameters(preset):
    sizes = [torch.Size(shape).numel() for shape in our_shapes(PRESETS[preset]).values()]
    assert sum(sizes) == PRESETS[preset].num_parameters


@given(
    layout=st.sampled_from(LAYOUTS),
    groups=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    layers=st.integers(1, 3),
)
def test_every_row_is_stored_once_and_read_once(layout, groups, kv_heads, layers):
    groups = 1 if layout == "C" else groups
    config = dataclasses.replace(
        SMALL,
        hidden_size=4 * groups * kv_heads,
        num_attention_heads=groups * kv_heads,
        num_key_value_heads=kv_heads,
        num_hidden_layers=layers,
    )
    ours, stored = our_shapes(config), stored_shapes(config, layout)
    seen = {name: [] for name in stored}
    for name, pieces in find_pieces(config, layout).items():
        filled = [row for p in pieces for row in range(p.target, p.target + p.rows)]
        assert sorted(filled) == list(range(ours[name][0]))
        for piece in pieces:
            seen[piece.name] += range(piece.start, piece.start + piece.rows)
    assert {name: sorted(rows) for name, rows in seen.items()} == {
        name: list(range(shape[0])) for name, shape in stored.items()
    }


def rearranged(layout, stored):
    """The rows of our qkv_proj, taken from one stored tensor or three."""
    ours = torch.zeros(72)
    for piece in find_pieces(SMALL, layout)[QKV]:
        rows = stored[piece.name][piece.start : piece.start + piece.rows]
        ours[piece.target : piece.target + piece.rows] = rows
    return ours


def test_row_orders_are_those_of_the_original_code():
    rows = torch.arange(72.0)
    fused = rearranged("B", {"transformer.h.1.mixer.Wqkv.weight": rows})
    assert torch.equal(fused, rows)  # chunk(3) gives q, k and v
    name = "model.layers.1.self_attn.query_key_value.weight"
    q, k, v = rows.view(4, 3, 6).unbind(1)  # (heads, three, head_dim)
    assert torch.equal(rearranged("C", {name: rows}), torch.stack([q, k, v]).flatten())
    parts = {f"model.layers.1.self_attn.{x}_proj.weight": rows[i::3] for i, x in enumerate("qkv")}
    assert torch.equal(rearranged("D", parts), torch.cat(list(parts.values())))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_told_from_the_names(layout):
    assert detect_layout(stored_shapes(SMALL, layout)) == layout


def test_names_of_two_layouts_are_refused():
    names = [*stored_shapes(SMALL, "B"), *stored_shapes(SMALL, "D")]
    with pytest.raises(CheckpointError, match=r"mix the layouts \['B', 'D'\]"):
        detect_layout(names)


def test_names_of_no_layout_are_listed():
    with pytest.raises(
        CheckpointError, match=r"of no Phi layout; the first are 'gpt\.0', 'gpt\.1'"
    ):
        detect_layout(["gpt.0", "gpt.1"])


def test_legacy_spellings_are_modernised_and_buffers_left_out():
    names = {
        "layers.1.mlp.fc_in.weight": "layers.1.mlp.fc1.weight",
        "layers.1.mlp.fc_out.bias": "layers.1.mlp.fc2.bias",
        "layers.2.mlp.mlp.fc1.weight": "layers.2.mlp.fc1.weight",
        "layers.2.mlp.fc2.weight": "layers.2.mlp.fc2.weight",
    }
    buffers = ("layers.1.mixer.rotary_emb.inv_freq", "model.layers.0.self_attn.masked_bias")
    buffers += ("model.layers.0.self_attn.rotary_emb.inv_freq",)
    assert modernise([*names, *buffers]) == {new: old for old, new in names.items()}


def test_one_tensor_in_two_spellings_is_refused():
    with pytest.raises(CheckpointError, match="are the same tensor"):
        modernise(["layers.1.mlp.fc_in.weight", "layers.1.mlp.fc1.weight"])


def test_only_the_first_five_faults_are_listed():
    expected = stored_shapes(SMALL, "B")
    found = dict(list(expected.items())[4:]) | {"lm_head.ln.bias": (3,), "extra": (1,)}
    with pytest.raises(CheckpointError) as caught:
        check_shapes(found, expected, where="it")
    message = str(caught.value)
    assert message.count("no 'transformer.") == 4
    assert "'lm_head.ln.bias' has shape [3], the config wants [24]" in message
    assert "extra" not in message
    assert message.endswith("and 1 more")


def test_layout_c_has_no_form_for_grouped_heads():
    with pytest.raises(UnsupportedError, match="no form for fewer key-value heads"):
        find_pieces(dataclasses.replace(SMALL, num_key_value_heads=2), "C")


@pytest.mark.parametrize("layout", ["A", "B"])
def test_microsofts_layouts_have_no_names_for_qk_layernorm(layout):
    with pytest.raises(UnsupportedError, match="no names for qk_layernorm"):
        find_pieces(dataclasses.replace(SMALL, qk_layernorm=True), layout)
