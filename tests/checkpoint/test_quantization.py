"""Folders of integer weights: the same model as rounding gives, mapped, and refused elsewhere."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from oracle import make_model
from safetensors.torch import load_file, save_file

import phiscope
from phiscope.checkpoint import (
    Checkpoint,
    convert,
    describe,
    load_integers,
    load_model,
    quantize,
    save_checkpoint,
    verify,
)
from phiscope.checkpoint.quantized_folder import FILE_NAME, list_entries, make_integer_skeleton
from phiscope.checkpoint.safetensors_format import write_safetensors
from phiscope.config import QUANTIZATIONS, PhiConfig, read_config
from phiscope.errors import CheckpointError, ConfigError, NonFiniteError, UnsupportedError
from phiscope.inference import prepare
from phiscope.packing import pack
from phiscope.quantized import FORMATS, QuantizedLinear
from phiscope.runtime import MODES, select_mode

SMALL = PhiConfig(
    vocab_size=71,
    hidden_size=40,
    intermediate_size=50,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    rotary_dim=4,
    qk_layernorm=True,
)
PANELS = "model.layers.1.mlp.fc1.panels"


@pytest.fixture(scope="module")
def model():
    return make_model(SMALL, dtype=torch.float32)


@pytest.fixture(scope="module")
def floats(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("floats") / "it"
    save_checkpoint(model, folder)
    return folder


@pytest.fixture(scope="module")
def folders(floats, tmp_path_factory):
    """A folder in each format."""
    parent = tmp_path_factory.mktemp("integers")
    for format in FORMATS:
        quantize(floats, parent / format, format=format)
    return {format: parent / format for format in FORMATS}


@pytest.fixture
def copy(folders, tmp_path):
    """One in four bits that a test may damage."""
    return shutil.copytree(folders["int4"], tmp_path / "copy")


def assert_same_state(model, other):
    state, expected = model.state_dict(), other.state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert state[name].equal(tensor), name


def rewrite(folder, **changes):
    """Store other tensors in place of some; None leaves one out."""
    tensors = load_file(folder / FILE_NAME) | changes
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    entries = {name: (x.dtype, tuple(x.shape)) for name, x in tensors.items()}
    write_safetensors(folder / FILE_NAME, entries, tensors.values(), alignment=64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("format", "layout"), [("int8", "C"), ("int4", "D")])
def test_a_folder_holds_what_rounding_when_loading_gives(model, tmp_path, format, layout, dtype):
    save_checkpoint(model, tmp_path / "floats", layout=layout, dtype=dtype)
    quantize(tmp_path / "floats", tmp_path / format, format=format)
    loaded = load_integers(tmp_path / format, format)
    assert_same_state(loaded, load_integers(tmp_path / "floats", format))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("format", FORMATS)
def test_layers_hold_what_rounding_each_of_them_gives(model, folders, format):
    loaded = load_integers(folders[format], format)
    for name, layer in loaded.named_modules():
        if isinstance(layer, QuantizedLinear):
            assert_same_state(layer, FORMATS[format].of(model.get_submodule(name)))
    norm = "model.final_layernorm.weight"
    assert loaded.state_dict()[norm].equal(model.state_dict()[norm])


@pytest.mark.parametrize("mode", ["int8-cpu", "int8-fp32-cpu", "int4-cpu"])
@torch.inference_mode()
def test_its_logits_are_those_of_the_model_rounded_in_memory(model, folders, mode):
    ids, packed = pack([[1, 2, 3, 4, 5], [6, 7]])
    chosen = MODES[mode]
    loaded = load_integers(folders[chosen.weights], chosen.weights, wide=chosen.has_wide_products)
    exact = model(ids, packed)
    ours = prepare(loaded, chosen)(ids, packed)
    error = (ours - exact).norm() / exact.norm()
    assert 1e-4 < error < (0.3 if mode == "int4-cpu" else 0.03)


@pytest.mark.parametrize("format", FORMATS)
def test_what_lies_in_the_file_is_read_by_any_reader_of_safetensors(folders, format):
    stored = load_file(folders[format] / FILE_NAME)
    state = load_integers(folders[format], format).state_dict()
    assert stored.keys() == state.keys()
    assert all(stored[name].equal(state[name]) for name in state)


@pytest.mark.parametrize("format", FORMATS)
def test_panels_lie_on_the_borders_of_cache_lines(folders, format):
    state = load_integers(folders[format], format).state_dict()
    panels = {name: x for name, x in state.items() if x.dtype == torch.uint8}
    assert len(panels) == (13 if format == "int8" else 26)
    assert {x.data_ptr() % 64 for x in panels.values()} == {0}
    assert {x.data_ptr() % x.itemsize for x in state.values()} == {0}


def test_what_is_written_to_mapped_weights_does_not_reach_the_file(folders):
    before = (folders["int8"] / FILE_NAME).read_bytes()
    first, second = (load_integers(folders["int8"], "int8") for _ in range(2))
    first.state_dict()[PANELS].fill_(7)
    assert (folders["int8"] / FILE_NAME).read_bytes() == before
    assert not second.state_dict()[PANELS].eq(7).all()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux alone tells it")
def test_mapped_weights_take_no_memory_of_their_own(folders):
    loaded = load_integers(folders["int8"], "int8")
    assert sum(int(x.sum()) for x in loaded.state_dict().values() if x.dtype == torch.uint8)
    regions = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    (ours,) = [text for text in regions if str(folders["int8"] / FILE_NAME) in text]
    sizes = dict(re.findall(r"(Rss|Private_Dirty|Anonymous): +(\d+)", ours))
    assert int(sizes["Rss"]) > 0
    assert (sizes["Private_Dirty"], sizes["Anonymous"]) == ("0", "0")


def test_first_layers_are_the_first_of_the_whole(folders):
    whole = load_integers(folders["int4"], "int4").state_dict()
    part = load_integers(folders["int4"], "int4", layers=2)
    assert part.lm_head is None
    state = part.state_dict()
    assert {name.split(".")[2] for name in state if name.startswith("model.layers.")} == {"0", "1"}
    assert all(whole[name].equal(tensor) for name, tensor in state.items())


def test_auto_runs_a_folder_in_the_mode_of_its_format(folders):
    for format in FORMATS:
        config = read_config(folders[format])
        assert config.quantization == format
        mode = select_mode("auto", num_parameters=config.num_parameters, stored=format)
        assert mode.name == f"{format}-cpu"


@pytest.mark.parametrize(
    ("mode", "stored", "remedy"),
    [
        ("fp32-cpu", "int8", "use mode 'int8-cpu'"),
        ("int4-cpu", "int8", "for int8-cpu and int8-fp32-cpu"),
        ("int8-fp32-cpu", "int4", "use mode 'int4-cpu'"),
    ],
)
def test_another_mode_is_refused_with_the_one_to_use(mode, stored, remedy):
    with pytest.raises(UnsupportedError, match=f"'{mode}' needs the float checkpoint.*{remedy}"):
        select_mode(mode, num_parameters=10**6, stored=stored)


def test_integers_of_another_format_are_refused(folders):
    with pytest.raises(UnsupportedError, match="rounded to int8, not to int4"):
        load_integers(folders["int8"], "int4")


def test_what_needs_floats_refuses_the_folder_by_name(folders, tmp_path):
    folder = folders["int8"]
    for task in (
        lambda: load_model(folder, dtype=torch.float32),
        lambda: convert(folder, tmp_path / "other", layout="D"),
        lambda: quantize(folder, tmp_path / "other", format="int4"),
        lambda: Checkpoint(folder),
    ):
        with pytest.raises(UnsupportedError, match=r"rounded to int8, which phiscope\.load opens"):
            task()
    with pytest.raises(UnsupportedError, match="not saved as floats"):
        save_checkpoint(load_integers(folder, "int8"), tmp_path / "other")
    assert not list(tmp_path.iterdir())


def test_transformers_classes_refuse_the_folder(folders):
    transformers = pytest.importorskip("transformers")
    from phiscope.hf import PhiForCausalLM

    with pytest.raises(UnsupportedError, match=r"rounded to int8, which phiscope\.load opens"):
        PhiForCausalLM.from_pretrained(folders["int8"])
    with pytest.raises(OSError, match="no file named"):
        transformers.models.phi.PhiForCausalLM.from_pretrained(folders["int8"])


def test_describe_and_verify_know_integer_weights(folders):
    summary, found = describe(folders["int8"]), verify(folders["int8"])
    assert summary.layout is None
    assert summary.config == dataclasses.replace(
        read_config(folders["int8"]), quantization="int8", dtype="bfloat16"
    )
    assert summary.dtypes == {"float32": 46, "uint8": 13, "bfloat16": 1}
    assert found.sound
    assert found.num_tensors == 60
    assert set(found.sha256) == {"config.json", FILE_NAME}


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        (PANELS, None, f"no '{PANELS}'"),
        (PANELS, lambda x: x[:-1], "has shape .* the config wants"),
        (PANELS, lambda x: x.to(torch.int8), "is int8, not uint8"),
        ("unheard.of", lambda x: torch.ones(64), "unknown 'unheard.of'"),
        (PANELS.replace("panels", "multipliers"), lambda x: x * 0, "holds 0, and must be"),
        (PANELS.replace("panels", "multipliers"), lambda x: x * 0 + 17, "holds 17, and must be"),
        (PANELS.replace("panels", "scales"), lambda x: x * torch.nan, "holds NaN or infinity"),
        (PANELS.replace("panels", "scales"), lambda x: -x, "holds -.*, and must be from 0"),
        (PANELS.replace("panels", "bias"), lambda x: x / 0, "holds NaN or infinity"),
    ],
)
def test_a_damaged_or_foreign_tensor_is_named(copy, name, change, fault):
    old = load_file(copy / FILE_NAME).get(name)
    rewrite(copy, **{name: None if change is None else change(old)})
    for task in (lambda: load_integers(copy, "int4"), lambda: _raise(verify(copy).problems)):
        with pytest.raises(CheckpointError, match=fault) as caught:
            task()
        assert name in str(caught.value)


def _raise(problems):
    raise CheckpointError("; ".join(problems))


def test_panels_that_another_program_laid_elsewhere_are_refused(copy):
    save_file(load_file(copy / FILE_NAME), copy / FILE_NAME, metadata={"x": "y" * 8})
    with pytest.raises(CheckpointError, match=r"'.*' in .* lies at byte .* no multiple of 64"):
        load_integers(copy, "int4")


def test_a_file_cut_short_is_refused_before_it_is_mapped(copy):
    os.truncate(copy / FILE_NAME, (copy / FILE_NAME).stat().st_size - 1)
    with pytest.raises(CheckpointError, match="cut short"):
        load_integers(copy, "int4")


def test_a_folder_without_its_file_is_refused(copy):
    (copy / FILE_NAME).unlink()
    with pytest.raises(CheckpointError, match=f"no weights in .* looked for {FILE_NAME}"):
        load_integers(copy, "int4")


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        ({"format": "int4", "version": 2}, UnsupportedError, "version 2"),
        ({"format": "int3", "version": 1}, UnsupportedError, "no quantization 'int3'"),
        ({"version": 1}, ConfigError, "format and version"),
        ("int4", ConfigError, "format and version"),
        (None, CheckpointError, "no weights"),
    ],
)
def test_a_config_that_tells_it_in_another_way_is_refused(copy, told, kind, words):
    path = copy / "config.json"
    config = json.loads(path.read_text()) | {"phiscope_quantization": told}
    path.write_text(json.dumps(config))
    with pytest.raises(kind, match=words):
        load_integers(copy, "int4")


@pytest.mark.parametrize("name", ["model.layers.1.mlp.fc1.weight", "model.embed_tokens.weight"])
def test_what_is_no_number_is_not_rounded_and_nothing_is_left(model, tmp_path, name):
    save_checkpoint(model, tmp_path / "floats")
    tensors = load_file(tmp_path / "floats" / "model.safetensors")
    tensors[name][7, 3] = torch.nan
    save_file(tensors, tmp_path / "floats" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=rf"'{name}' holds NaN"):
        quantize(tmp_path / "floats", tmp_path / "it", format="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["floats"]
    with pytest.warns(RuntimeWarning, match="1 tensors"):
        load_integers(tmp_path / "floats", "int8")


def test_an_unknown_format_is_refused(floats, tmp_path):
    with pytest.raises(ValueError, match="no format 'int3'; choose from int8, int4"):
        quantize(floats, tmp_path / "it", format="int3")


def test_formats_are_those_that_configs_know():
    assert tuple(FORMATS) == QUANTIZATIONS
    assert {mode.weights for mode in MODES.values()} == {None, *FORMATS}


def test_embeddings_are_stored_behind_all_that_need_more_room_between_them():
    entries = list_entries(make_integer_skeleton(SMALL, "int4"))
    sizes = [dtype.itemsize for dtype, _ in entries.values()]
    assert sizes == sorted(sizes, key=[1, 4, 2].index)


def test_a_quantized_folder_keeps_the_tokenizer(tmp_path):
    from phiscope.checkpoint.hub import resolve

    phiscope.quantize(resolve("nano"), tmp_path / "it", format="int8")
    ours, theirs = phiscope.load(tmp_path / "it"), phiscope.load("nano", mode="int8-cpu")
    assert ours.tokenizer.fingerprint == theirs.tokenizer.fingerprint
    assert ours.mode == theirs.mode
    told = [phi.generate("a list", max_new_tokens=8).token_ids for phi in (ours, theirs)]
    assert told[0] == told[1]
