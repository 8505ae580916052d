import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle import make_model, make_peer, transformers
from safetensors.torch import load_file, save_file

import phiscope
from phiscope.checkpoint import (
    Checkpoint,
    convert,
    describe,
    load_model,
    save_checkpoint,
    verify,
    write_checkpoint,
)
from phiscope.checkpoint.layouts import DIALECTS, LAYOUTS, our_shapes, stored_shapes
from phiscope.config import PhiConfig, read_config
from phiscope.errors import CheckpointError, NonFiniteError, UnsupportedError
from phiscope.packing import pack

SMALL = PhiConfig(
    vocab_size=71,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    rotary_dim=4,
    bos_token_id=0,
    eos_token_id=1,
)
VARIANTS = {  # and the layouts that can express them
    "plain": (SMALL, "ABCD"),
    "grouped": (dataclasses.replace(SMALL, num_key_value_heads=2), "ABD"),
    "qk_layernorm": (dataclasses.replace(SMALL, qk_layernorm=True), "CD"),
}
PAIRS = [
    (variant, source, target)
    for variant, (_, layouts) in VARIANTS.items()
    for source in layouts
    for target in layouts
]


@pytest.fixture(scope="module")
def models():
    return {name: make_model(config, dtype=torch.float32) for name, (config, _) in VARIANTS.items()}


def assert_same_state(model, expected):
    state = model.state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory):
    """A folder of each variant in each of its layouts, which no test changes."""
    root = tmp_path_factory.mktemp("saved")
    for variant, (_, layouts) in VARIANTS.items():
        (root / variant).mkdir()
        for layout in layouts:
            save_checkpoint(models[variant], root / variant / layout, layout=layout)
    return root


def make_pair(models, folder, variant, layout="D", **options):
    save_checkpoint(models[variant], folder, layout=layout, **options)
    return folder, models[variant].state_dict()


def our_logits(model, ids):
    return model(*pack([ids]))


@pytest.mark.parametrize(("variant", "source", "target"), PAIRS)
def test_every_pair_of_layouts_round_trips_bit_for_bit(
    models, saved, tmp_path, variant, source, target
):
    first, state = saved / variant / source, models[variant].state_dict()
    convert(first, tmp_path / "second", layout=target, max_shard_size=20_000)
    convert(tmp_path / "second", tmp_path / "third", layout=source)
    assert describe(tmp_path / "second").layout == target
    assert_same_state(load_model(tmp_path / "second", dtype=torch.float32), state)
    name = "model.safetensors"
    assert (first / name).read_bytes() == (tmp_path / "third" / name).read_bytes()
    assert read_config(first) == read_config(tmp_path / "third")


@pytest.mark.parametrize("variant", VARIANTS)
def test_converted_checkpoint_gives_equal_logits_in_transformers(models, tmp_path, variant):
    source, _ = make_pair(models, tmp_path / "source", variant, VARIANTS[variant][1][0])
    convert(source, tmp_path / "D", layout="D", max_shard_size=20_000)
    peer, report = transformers.PhiForCausalLM.from_pretrained(
        tmp_path / "D", output_loading_info=True
    )
    assert not any(report.values())
    ids = list(range(2, 40))
    with torch.no_grad():
        expected = peer(torch.tensor([ids])).logits[0]
    ours = our_logits(load_model(source, dtype=torch.float32), ids)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", ["10MB", "20KB"])
def test_checkpoint_saved_by_transformers_is_the_same_model(models, tmp_path, size):
    make_peer(models["grouped"]).save_pretrained(tmp_path, max_shard_size=size)
    loaded = load_model(tmp_path, dtype=torch.float32)
    assert_same_state(loaded, models["grouped"].state_dict())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_loading_in_another_dtype_is_converting(models, tmp_path, dtype):
    folder, state = make_pair(models, tmp_path / "it", "plain", "C")
    expected = {name: tensor.to(dtype) for name, tensor in state.items()}
    assert_same_state(load_model(folder, dtype=dtype), expected)
    convert(folder, tmp_path / "other", layout="A", dtype=dtype)
    assert describe(tmp_path / "other").dtypes == {str(dtype).removeprefix("torch."): 35}
    assert_same_state(load_model(tmp_path / "other", dtype=dtype), expected)


def test_saving_in_another_dtype_is_converting(models, tmp_path):
    folder, state = make_pair(models, tmp_path / "it", "plain", dtype=torch.bfloat16)
    expected = {name: tensor.bfloat16() for name, tensor in state.items()}
    assert_same_state(load_model(folder, dtype=torch.bfloat16), expected)
    assert read_config(folder).dtype == "bfloat16"


def test_mixed_dtypes_are_kept_by_conversion(models, tmp_path):
    folder, _ = make_pair(models, tmp_path / "it", "plain", "D")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.ones(32, 32, dtype=torch.float64)
    tensors["lm_head.bias"] = tensors["lm_head.bias"].half()
    save_file(tensors, path, metadata={"format": "pt"})
    convert(folder, tmp_path / "B", layout="B")
    assert describe(tmp_path / "B").dtypes == {"float32": 33, "float64": 1, "float16": 1}


@pytest.mark.parametrize("value", ["float32", torch.int8])
def test_dtype_that_weights_cannot_have_is_refused(models, tmp_path, value):
    with pytest.raises(ValueError, match="weights cannot be"):
        load_model(tmp_path, dtype=value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_first_layers_are_loaded_without_reading_the_others(models, tmp_path, layout):
    folder, state = make_pair(models, tmp_path / "it", "plain", layout)
    with Checkpoint(folder) as checkpoint:
        unread = set(checkpoint.tensors)
        names = our_shapes(SMALL, layers=2)
        for span in checkpoint.spans({name: torch.empty(shape) for name, shape in names.items()}):
            unread.discard(span.source.name)
    tensors = load_file(folder / "model.safetensors")
    damaged = {name: x * (float("nan") if name in unread else 1) for name, x in tensors.items()}
    save_file(damaged, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(folder, dtype=torch.float32, layers=2)  # would warn of NaN
    assert_same_state(loaded, {name: state[name] for name in names})
    with pytest.warns(RuntimeWarning, match="hold NaN or infinity"):
        load_model(folder, dtype=torch.float32)


def test_only_the_layers_bytes_are_asked_of_the_disk(models, tmp_path):
    counter = Path("/proc/self/io")
    if not counter.exists():
        pytest.skip("the kernel counts bytes read only on Linux")
    config = dataclasses.replace(SMALL, num_hidden_layers=8)
    folder = tmp_path / "it"
    save_checkpoint(make_model(config, dtype=torch.float32), folder)
    code = (
        "import sys, torch\n"
        "from phiscope.checkpoint import load_model\n"
        "def count(): return int(open('/proc/self/io').read().split('rchar:')[1].split()[0])\n"
        "load = lambda n: load_model(sys.argv[1], dtype=torch.float32, layers=n)\n"
        "load(1); a = count(); load(1); b = count(); load(5); print(b - a, count() - b)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    variables = {**os.environ, "PYTHONPATH": str(Path(phiscope.__file__).parents[1])}
    output = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
    few, many = map(int, output.stdout.split())
    block = sum(torch.Size(shape).numel() for shape in our_shapes(SMALL, layers=1).values())
    block -= SMALL.vocab_size * SMALL.hidden_size
    assert many - few == 4 * block * 4


def test_legacy_spellings_and_buffers_load(models, tmp_path):
    folder, state = make_pair(models, tmp_path / "it", "plain", "A")
    path = folder / "model.safetensors"
    tensors = {
        name.replace(".mlp.fc1.", ".mlp.fc_in.").replace(".mlp.fc2.", ".mlp.fc_out."): tensor
        for name, tensor in load_file(path).items()
    }
    tensors["layers.1.mixer.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, path)
    assert_same_state(load_model(folder, dtype=torch.float32), state)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_file_loads_as_safetensors_do(models, tmp_path, layout):
    folder, state = make_pair(models, tmp_path / "it", "plain", layout)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_same_state(load_model(folder, dtype=torch.float32), state)
    convert(folder, tmp_path / "safe", layout=layout)
    assert_same_state(load_model(tmp_path / "safe", dtype=torch.float32), state)


def test_resized_vocabulary_of_microsofts_dialect_loads(models, tmp_path):
    folder, state = make_pair(models, tmp_path / "it", "plain", "B")
    raw = json.loads((folder / "config.json").read_text())
    raw["pad_vocab_size_multiple"] = 64  # 71 rows, which stand for 128 by the original code
    (folder / "config.json").write_text(json.dumps(raw))
    loaded = load_model(folder, dtype=torch.float32)
    assert_same_state(loaded, state)
    assert loaded.config.vocab_size == 71


@pytest.mark.parametrize("layout", LAYOUTS)
def test_config_is_written_in_the_dialect_of_the_layout(models, tmp_path, layout):
    folder, _ = make_pair(models, tmp_path / "it", "plain", layout)
    raw = json.loads((folder / "config.json").read_text())
    expected = dataclasses.replace(SMALL, dtype="float32").to_dict(DIALECTS[layout])
    assert raw == expected
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == SMALL.eos_token_id


def test_conversion_brings_the_tokenizer_and_nothing_else(models, tmp_path):
    folder, _ = make_pair(models, tmp_path / "it", "plain")
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "modeling_phi.py").write_text("raise SystemExit\n")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    convert(folder, tmp_path / "new", layout="B")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        *("config.json", "generation_config.json", "merges.txt"),
        *("model.safetensors", "tokenizer.json"),
    ]
    settings = json.loads((tmp_path / "new" / "generation_config.json").read_text())
    assert settings == {"eos_token_id": [1, 2]}


@pytest.mark.parametrize("kind", ["full folder", "file"])
def test_existing_destination_is_left_alone(models, tmp_path, kind):
    target = tmp_path / "there"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        save_checkpoint(models["plain"], target)
    assert (target if kind == "file" else target / "mine").read_text() == "mine"


def test_empty_destination_is_filled(models, tmp_path):
    (tmp_path / "there").mkdir()
    folder, state = make_pair(models, tmp_path / "there", "plain")
    assert_same_state(load_model(folder, dtype=torch.float32), state)


def test_failed_save_leaves_nothing(tmp_path):
    def fetch(name):
        if name.startswith("model.layers.2"):
            raise OSError(28, "No space left on device")
        return torch.zeros(our_shapes(SMALL)[name])

    dtypes = dict.fromkeys(our_shapes(SMALL), torch.float32)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left on device"):
        write_checkpoint(tmp_path / "it", SMALL, dtypes, fetch, max_shard_size=10_000)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_named(models, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*file/it"):
        save_checkpoint(models["plain"], tmp_path / "file" / "it")


def test_truncated_model_is_not_saved(models, tmp_path):
    folder, _ = make_pair(models, tmp_path / "it", "plain")
    with pytest.raises(UnsupportedError, match="layers= is no checkpoint"):
        save_checkpoint(load_model(folder, dtype=torch.float32, layers=1), tmp_path / "new")


def test_layout_that_cannot_express_the_model_is_refused_before_writing(models, tmp_path):
    with pytest.raises(UnsupportedError, match="use layout D"):
        save_checkpoint(models["grouped"], tmp_path / "it", layout="C")
    with pytest.raises(ValueError, match="no layout 'E'"):
        save_checkpoint(models["plain"], tmp_path / "it", layout="E")
    assert list(tmp_path.iterdir()) == []


def test_weight_beyond_fp16_is_named_by_load_save_and_convert(tmp_path):
    model = make_model(SMALL, dtype=torch.float32)
    model.model.layers[1].mlp.fc1.weight[3, 4] = 1e5
    save_checkpoint(model, tmp_path / "it")
    message = re.escape("'model.layers.1.mlp.fc1.weight' holds 100000, beyond the range")
    with pytest.raises(NonFiniteError, match=message):
        load_model(tmp_path / "it", dtype=torch.float16)
    with pytest.raises(NonFiniteError, match=message):
        save_checkpoint(model, tmp_path / "half", dtype=torch.float16)
    with pytest.raises(NonFiniteError, match=message):
        convert(tmp_path / "it", tmp_path / "half", layout="D", dtype=torch.float16)
    assert not (tmp_path / "half").exists()


def test_description_tells_what_the_headers_say(models, tmp_path):
    folder, _ = make_pair(models, tmp_path / "it", "plain", "B", max_shard_size=30_000)
    summary = describe(folder)
    assert (summary.layout, summary.num_tensors) == ("B", 35)
    assert summary.num_parameters == SMALL.num_parameters
    assert summary.files == {
        path.name: path.stat().st_size for path in folder.glob("*.safetensors")
    }
    assert json.loads(json.dumps(summary.to_dict()))["config"]["hidden_size"] == 32


def test_sound_checkpoint_is_verified_with_its_hashes(models, tmp_path):
    folder, _ = make_pair(models, tmp_path / "it", "plain", max_shard_size=30_000)
    counts = []
    report = verify(folder, on_bytes=counts.append)
    assert report.sound
    assert (report.layout, report.dtypes) == ("D", {"float32": 47})
    sums = subprocess.run(
        ["sha256sum", *sorted(report.sha256)], cwd=folder, capture_output=True, text=True
    )
    assert sums.stdout.split() == [
        x for name in sorted(report.sha256) for x in (report.sha256[name], name)
    ]
    assert len(report.sha256) == len(list(folder.glob("model*"))) + 1
    assert sum(counts) > 2 * 4 * SMALL.num_parameters
    assert json.loads(json.dumps(report.to_dict()))["sound"] is True


def test_stored_shapes_are_those_transformers_expects(models):
    peer = make_peer(models["qk_layernorm"])
    expected = {name: tuple(tensor.shape) for name, tensor in peer.state_dict().items()}
    assert stored_shapes(models["qk_layernorm"].config, "D") == expected
