"""Checkpoints that are damaged, incomplete, hostile or absurd: each gives an error that names it.

The numbers are those of the project's list of faults.
"""

import dataclasses
import json
import os
import pickle
import tracemalloc
import warnings
import zipfile

import pytest
import torch
from oracle import make_model
from safetensors.torch import load_file, save_file

from phiscope.checkpoint import Checkpoint, describe, load_model, save_checkpoint, verify
from phiscope.checkpoint.weights import Span, Weights, read_spans
from phiscope.config import PRESETS, PhiConfig, read_config
from phiscope.errors import CheckpointError, ConfigError, UnsupportedError

SMALL = PhiConfig(
    vocab_size=71,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    rotary_dim=4,
)


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(make_model(SMALL, dtype=torch.float32), tmp_path / "phi")
    return tmp_path / "phi"


def rewrite(folder, change):
    """Change the tensors of a checkpoint in its one file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def reconfigure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def craft(folder, header, data=b""):
    """A safetensors file of any header; bytes stand for themselves."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


def entry(dtype="F32", shape=(2,), span=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


def test_fault_41_file_cut_at_any_byte_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(5), "b": torch.ones(2, 3)}, path, metadata={"format": "pt"})
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            Weights(tmp_path)


def test_fault_41_checkpoint_cut_anywhere_is_refused_and_reported(folder):
    path = folder / "model.safetensors"
    size = path.stat().st_size
    for cut in (0, 7, 8, 100, size // 2, size - 1):
        data = path.read_bytes()
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_model(folder, dtype=torch.float32)
        report = verify(folder)
        assert not report.sound
        assert "model.safetensors" in report.problems[0]
        assert set(report.sha256) == {"config.json", "model.safetensors"}
        path.write_bytes(data)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="cut short or appended to"):
        load_model(folder, dtype=torch.float32)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100 * 2**20 + 1, 100 * 2**20, 1000])
def test_fault_41_huge_header_length_allocates_nothing(tmp_path, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=f"claims a header of {length:,} bytes"):
        Weights(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(), "b": entry(span=(4, 12))}, "'b' at byte 4 overlaps"),
        ({"a": entry(), "b": entry()}, "'b' at byte 0 overlaps"),
        ({"a": entry(), "b": entry(span=(12, 20))}, "'b' at byte 12 leaves a hole"),
        ({"a": entry(span=(4, 12))}, "'a' at byte 4 leaves a hole"),
        ({"a": entry(span=(8, 0))}, "'a' has impossible data_offsets"),
        ({"a": entry(span=(-8, 0))}, "'a' has impossible data_offsets"),
        ({"a": entry(span=(0, 8, 16))}, "'a' has impossible data_offsets"),
        ({"a": entry(span=(0, 8.0))}, "'a' has impossible data_offsets"),
        ({"a": entry(dtype="F31")}, "'a' has the unknown dtype 'F31'"),
        ({"a": entry(dtype=["F32"])}, "'a' has the unknown dtype"),
        ({"a": entry(dtype="F16")}, "'a' of shape .* needs 4 bytes"),
        ({"a": entry(shape=(3,))}, "'a' of shape .* needs 12 bytes"),
        ({"a": entry(shape=(2**62, 2**62))}, "'a' of shape .* needs"),
        ({"a": entry(shape=(-2,))}, "'a' has the impossible shape"),
        ({"a": entry(shape=(True, 2))}, "'a' has the impossible shape"),
        ({"a": {"dtype": "F32"}}, "'a' must have dtype, shape and data_offsets"),
        ({"a": 3}, "'a' must have dtype, shape and data_offsets"),
        ({"__metadata__": {"format": 1}, "a": entry()}, "__metadata__ must map names"),
        (b'{"a": {}, "a": {}}', "'a' is there twice"),
        (b"[]", "must hold a JSON object"),
        (b"\xff\xfe", "not sound JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[" * 50_000, "not sound JSON"),
    ],
)
def test_fault_41_impossible_header_names_file_and_tensor(tmp_path, header, message):
    craft(tmp_path, header, bytes(8))
    with pytest.raises(CheckpointError, match=message) as caught:
        Weights(tmp_path)
    assert "model.safetensors" in str(caught.value)


def test_fault_41_wrong_dtype_or_shape_names_the_tensor(folder):
    def change(tensors):
        tensors["lm_head.bias"] = torch.zeros(72)
        tensors["model.final_layernorm.bias"] = torch.zeros(32, dtype=torch.int64)

    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=r"'lm_head\.bias' has shape \[72\].* wants \[71\]"):
        load_model(folder, dtype=torch.float32)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.bias": torch.zeros(71)}))
    with pytest.raises(CheckpointError, match=r"'model\.final_layernorm\.bias' of int64"):
        load_model(folder, dtype=torch.float32)


def test_fault_41_torch_file_cut_anywhere_is_named(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(5), "b": torch.ones(2, 3)}, path)
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            Weights(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_fault_41_pipe_in_place_of_a_file_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        Weights(tmp_path)


def test_fault_42_missing_and_extra_tensors_are_listed(folder):
    def change(tensors):
        for name in list(tensors)[:3]:
            tensors["misnamed." + name] = tensors.pop(name)
        del tensors["model.layers.1.mlp.fc1.bias"]

    names = list(load_file(folder / "model.safetensors"))
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match="does not fit its config") as caught:
        load_model(folder, dtype=torch.float32)
    message = str(caught.value)
    assert "no 'model.layers.1.mlp.fc1.bias'" in message
    assert all(f"no {name!r}" in message for name in names[:3])
    assert message.count("; ") == 5
    assert message.endswith("and 2 more")


def test_fault_42_checkpoint_of_another_size_is_refused(folder):
    reconfigure(folder, num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"unknown 'model\.layers\.1\."):
        load_model(folder, dtype=torch.float32)
    reconfigure(folder, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"no 'model\.layers\.2\."):
        load_model(folder, dtype=torch.float32)


@pytest.fixture
def sharded(tmp_path):
    model = make_model(SMALL, dtype=torch.float32)
    save_checkpoint(model, tmp_path / "phi", max_shard_size=20_000)
    return tmp_path / "phi"


def test_fault_42_missing_shards_are_listed(sharded):
    for path in list(sharded.glob("*-of-*"))[1:]:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"lacks the shards model-0000\d-of-"):
        load_model(sharded, dtype=torch.float32)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a\\x.safetensors",
        ".x.safetensors",
        None,
        "model.py",
        ["x.safetensors"],
    ],
)
def test_fault_42_index_that_leaves_its_folder_is_refused(sharded, name):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.bias"] = name
    path.write_text(json.dumps(index))
    (sharded.parent / "x.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"must be a \.safetensors file beside its index"):
        load_model(sharded, dtype=torch.float32)


@pytest.mark.parametrize("fault", ["absent", "elsewhere", "unlisted"])
def test_fault_42_index_that_disagrees_with_its_files_is_refused(sharded, fault):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = index["weight_map"]
    if fault == "absent":
        files["ghost"] = files["lm_head.bias"]
    elif fault == "elsewhere":
        files["lm_head.bias"] = files["model.embed_tokens.weight"]
    else:
        del files["lm_head.bias"]
    path.write_text(json.dumps(index))
    name = "ghost" if fault == "absent" else "lm_head.bias"
    with pytest.raises(CheckpointError, match=f"disagrees with its files: '{name}' in"):
        load_model(sharded, dtype=torch.float32)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}])
def test_fault_42_index_without_a_map_is_refused(sharded, index):
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="has no weight_map"):
        load_model(sharded, dtype=torch.float32)


def test_fault_42_tensor_in_two_shards_is_refused(sharded):
    first, second = sorted(sharded.glob("*-of-*"))[:2]
    tensors = load_file(second)
    name, tensor = next(iter(load_file(first).items()))
    save_file({**tensors, name: tensor}, second)
    with pytest.raises(CheckpointError, match=f"'{name}' is in .* and again in"):
        load_model(sharded, dtype=torch.float32)


class Hostile:
    """Writes a file when it is unpickled by a reader that obeys."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return open, (self.canary, "w")


def test_fault_43_hostile_pickle_executes_nothing(folder, tmp_path):
    canary = tmp_path / "canary"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save({**tensors, "evil": Hostile(canary)}, path)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin asks for more than plain"):
        load_model(folder, dtype=torch.float32)
    assert "more than plain" in verify(folder).problems[0]
    assert not canary.exists()
    torch.load(path, weights_only=False)["evil"].close()
    assert canary.exists()  # the file was really hostile


@pytest.mark.parametrize("kind", ["legacy torch", "plain pickle", "tar"])
def test_fault_43_older_pickle_formats_are_refused(folder, tmp_path, kind):
    canary = tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if kind == "legacy torch":
        torch.save({"evil": Hostile(canary)}, path, _use_new_zipfile_serialization=False)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(Hostile(canary)))
    else:
        path.write_bytes(b"sys_info" + bytes(1000))
    with pytest.raises(CheckpointError, match="not the zip archive that torch writes"):
        load_model(folder, dtype=torch.float32)
    assert not canary.exists()


def test_fault_43_torchscript_archive_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is a TorchScript archive"):
        Weights(tmp_path)


def repack(path, *, change=lambda name, data: (name, data), compression=zipfile.ZIP_STORED, **add):
    """Write a torch archive anew with other entries."""
    with zipfile.ZipFile(path) as old:
        entries = [change(x.filename, old.read(x)) for x in old.infolist()]
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in [*entries, *add.items()]:
            new.writestr(name, data)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"compression": zipfile.ZIP_DEFLATED}, CheckpointError, "is compressed"),
        ({"other.pkl": b"x"}, CheckpointError, "must hold one data.pkl"),
        (
            {"change": lambda n, d: (n, b"big" if n.endswith("byteorder") else d)},
            UnsupportedError,
            "big-endian",
        ),
        (
            {"change": lambda n, d: (n, d[:4] if n.endswith("data/0") else d)},
            CheckpointError,
            "pytorch_model.bin",
        ),
        (
            {"change": lambda n, d: (n, d[:-9] if n.endswith("data.pkl") else d)},
            CheckpointError,
            "is damaged|asks for more",
        ),
    ],
)
def test_fault_43_tampered_archive_is_refused(tmp_path, options, error, message):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(5)}, path)
    repack(path, **options)
    with pytest.raises(error, match=message):
        Weights(tmp_path)


@pytest.mark.parametrize("state", [[torch.ones(2)], {"a": 3}, {1: torch.ones(2)}])
def test_fault_43_pickle_of_anything_but_named_tensors_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"must hold a mapping|'a' is a int"):
        Weights(tmp_path)


def test_fault_44_code_named_in_a_config_is_never_run(folder, tmp_path):
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')\n"
    for name in ("modeling_phi.py", "configuration_phi.py", "__init__.py", "kernel.py"):
        (folder / name).write_text(code)
    named = {
        "auto_map": {
            "AutoConfig": "configuration_phi.PhiConfig",
            "AutoModelForCausalLM": "modeling_phi.PhiForCausalLM",
        },
        "kernel_config": {"attention": "kernel.py"},
        "weights_url": "http://127.0.0.1:9/never",
        "attn_implementation": "kernels/evil",
        "transformers_weights": "../elsewhere.safetensors",
    }
    reconfigure(folder, **named)
    model = load_model(folder, dtype=torch.float32)
    assert describe(folder).layout == "D"
    assert not canary.exists()
    assert {key: model.config.extra[key] for key in named} == named


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be an integer from 1 to 1,024"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers must be"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers must be"),
        ({"vocab_size": 2**40}, "vocab_size must be"),
        ({"hidden_size": 2**12, "vocab_size": 2**30}, "parameters exceed"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings must be"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "5 heads do not divide"),
        ({"num_attention_heads": 0}, "num_attention_heads must be"),
        ({"num_attention_heads": -4}, "num_attention_heads must be"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide 4 heads"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps must be"),
        ({"layer_norm_eps": 0}, "layer_norm_eps must be"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps must be"),
        ({"resid_pdrop": 1.0}, "resid_pdrop must be"),
        ({"resid_pdrop": -0.1}, "resid_pdrop must be"),
        ({"initializer_range": -1}, "initializer_range must be"),
        ({"eos_token_id": -1}, "eos_token_id must be"),
        ({"eos_token_id": []}, "eos_token_id must be"),
        ({"qk_layernorm": "yes"}, "qk_layernorm must be"),
        ({"partial_rotary_factor": 0.4, "rope_parameters": None}, "rotary_dim must be even"),
        ({"partial_rotary_factor": 1.5, "rope_parameters": None}, "partial_rotary_factor must"),
        ({"partial_rotary_factor": 0.0, "rope_parameters": None}, "rotary_dim must be"),
        ({"rope_theta": 0.0, "rope_parameters": None}, "rope_theta must be"),
        ({"model_type": None}, "no model_type"),
    ],
)
def test_fault_45_absurd_config_is_refused_before_anything_is_read(tmp_path, change, message):
    raw = {**SMALL.to_dict("phi5"), **change}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=message):
        load_model(tmp_path, dtype=torch.float32)  # there are no weights to read


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["layer_norm_eps", "rope_theta", "resid_pdrop"])
def test_fault_45_config_with_nan_is_refused(value, name):
    with pytest.raises(ConfigError, match=f"{name} must be"):
        dataclasses.replace(SMALL, **{name: value})


@pytest.mark.parametrize("field", ["rotary_dim", "num_key_value_heads", "hidden_size"])
def test_fault_45_config_made_by_hand_is_checked_too(field):
    with pytest.raises(ConfigError):
        dataclasses.replace(SMALL, **{field: 3})


@pytest.mark.parametrize("family", ["phi3", "phimoe", "llama", "gpt2", "phi-msft-moe"])
def test_fault_45_other_families_are_refused_by_name(folder, family):
    reconfigure(folder, model_type=family)
    with pytest.raises(UnsupportedError, match=f"'{family}' is another family"):
        load_model(folder, dtype=torch.float32)


def test_fault_45_mixed_layouts_are_refused(folder):
    rewrite(folder, lambda tensors: tensors.update({"transformer.h.0.ln.bias": torch.ones(2)}))
    with pytest.raises(CheckpointError, match="mix the layouts"):
        load_model(folder, dtype=torch.float32)


def test_fault_45_small_file_for_a_full_size_config_allocates_nothing(folder):
    (folder / "config.json").write_text(json.dumps(PRESETS["phi-2"].to_dict()))
    with pytest.raises(CheckpointError, match="does not fit its config"):
        load_model(folder, dtype=torch.float32)
    assert read_config(folder).num_parameters > 2 * 10**9


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_fault_47_weights_that_are_not_finite_are_named(folder, value):
    def change(tensors):
        tensors["model.layers.1.self_attn.k_proj.weight"][5, 6] = value
        tensors["lm_head.bias"][70] = value

    rewrite(folder, change)
    names = {"lm_head.bias", "model.layers.1.self_attn.k_proj.weight"}
    report = verify(folder)
    assert set(report.non_finite) == names
    assert len(report.problems) == 2
    with pytest.warns(RuntimeWarning, match=r"2 tensors of .* hold NaN or infinity, .*lm_head"):
        load_model(folder, dtype=torch.float32)
    with pytest.warns(RuntimeWarning, match="2 tensors"):
        load_model(folder, dtype=torch.bfloat16)


def test_fault_48_loaded_model_does_not_need_its_files(folder):
    model = load_model(folder, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(bytes(5000))
        file.truncate(6000)
    (folder / "model.safetensors").unlink()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_fault_48_file_removed_while_open_is_read_to_its_end(folder):
    expected = load_file(folder / "model.safetensors")["lm_head.weight"]
    with Checkpoint(folder) as checkpoint:
        (folder / "model.safetensors").unlink()
        assert torch.equal(checkpoint.fetch("lm_head.weight", torch.float32), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fault_48_file_cut_while_open_is_a_clean_error(folder, dtype):
    with Checkpoint(folder) as checkpoint:
        os.truncate(folder / "model.safetensors", checkpoint.weights.files[0].size // 2)
        with pytest.raises(CheckpointError, match=r"too short for tensor 'lm_head\.weight'"):
            checkpoint.fetch("lm_head.weight", dtype)


def test_fault_48_file_overwritten_while_open_is_noticed(folder):
    path = folder / "model.safetensors"
    with Checkpoint(folder) as checkpoint:
        os.utime(path, ns=(0, 0))
        with pytest.raises(CheckpointError, match="changed while it was in use"):
            checkpoint.weights.check_unchanged()


def test_fault_48_one_bad_read_stops_the_others(folder):
    with Weights(folder) as weights:
        os.truncate(folder / "model.safetensors", 5000)
        spans = [Span(x, 0, torch.empty(x.shape), x.name) for x in weights.tensors.values()]
        with pytest.raises(CheckpointError, match=r"model\.safetensors is too short for tensor"):
            read_spans(spans)


def test_fault_48_checkpoint_that_disappears_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights in"):
        load_model(folder, dtype=torch.float32)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model(folder, dtype=torch.float32)
    assert "no config.json" in verify(folder).problems[0]
