"""Weights that stay in their files: what is loaded is the same, and a change does not go unseen."""

import os
import pickle
import signal
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from oracle import make_model

import phiscope
from phiscope import PhiConfig, pack
from phiscope.checkpoint import load_model, save_checkpoint
from phiscope.errors import CheckpointError
from phiscope.kernels import build

CONFIG = PhiConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=130,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    rotary_dim=6,
)
MATRICES = {
    "model.layers.0.mlp.fc1.weight",
    "model.layers.1.self_attn.dense.weight",
    "lm_head.weight",
}


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(
        make_model(CONFIG, dtype=torch.bfloat16), tmp_path / "x", max_shard_size=100_000
    )
    return tmp_path / "x"


def load(folder, **options):
    return load_model(folder, dtype=torch.bfloat16, mapped=True, **options)


def run(model):
    ids, packed = pack([[1, 2, 3]])
    with torch.inference_mode():
        return model(ids, packed)


def list_mapped(model, folder):
    """The names of the parameters that lie in a file of the folder."""
    with open("/proc/self/maps") as file:
        lines = [line.split() for line in file if str(folder) in line]
    areas = [[int(x, 16) for x in line[0].split("-")] for line in lines]
    return {
        name
        for name, x in model.state_dict().items()
        if any(begin <= x.data_ptr() < end for begin, end in areas)
    }


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what is mapped")
@pytest.mark.parametrize("layout", "ABCD")
def test_what_lies_in_one_piece_stays_in_its_file(tmp_path, layout):
    saved = make_model(CONFIG, dtype=torch.bfloat16)
    save_checkpoint(saved, tmp_path / "x", layout=layout, max_shard_size=100_000)
    model = load(tmp_path / "x")
    state = model.state_dict()
    assert all(state[name].equal(tensor) for name, tensor in saved.state_dict().items())
    assert list_mapped(model, tmp_path) >= MATRICES
    assert not list_mapped(load_model(tmp_path / "x", dtype=torch.bfloat16), tmp_path)
    assert not list_mapped(load_model(tmp_path / "x", dtype=torch.float32, mapped=True), tmp_path)


def test_writing_to_weights_changes_no_file(folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    model = load(folder)
    model.lm_head.weight.zero_()
    assert run(model).sub(model.lm_head.bias).eq(0).all()
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_a_file_that_is_written_to_is_no_longer_run(folder):
    model, wide = load(folder), phiscope.wide.widen(load(folder))
    copies = [model, deepcopy(model), wide]
    for one in copies:
        run(one)
    apart = pickle.loads(pickle.dumps(model))
    path = sorted(folder.glob("*.safetensors"))[0]
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\0\0")
    os.utime(path, (1, 1))
    for one in copies:
        with pytest.raises(CheckpointError, match=f"{path.name} changed while it was in use"):
            run(one)
    run(apart)


def test_a_file_that_is_replaced_or_removed_goes_on_serving(folder):
    model = load(folder)
    wanted = run(model)
    for path in folder.glob("*.safetensors"):
        path.rename(f"{path}.old")
        os.remove(f"{path}.old")
        path.write_bytes(b"something else")
    assert run(model).equal(wanted)


def test_infinities_are_told_as_ever(folder):
    path = sorted(folder.glob("*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    data[-2:] = b"\x80\x7f"
    path.write_bytes(data)
    with pytest.warns(RuntimeWarning, match="NaN or infinity"):
        load(folder)


CUT = """
import os, sys, torch
from pathlib import Path
from phiscope.checkpoint import load_model
model = load_model(Path(sys.argv[1]), dtype=torch.bfloat16, mapped=True)
for path in Path(sys.argv[1]).glob("*.safetensors"):
    os.truncate(path, 0)
print(model.lm_head.weight.float().sum())
"""


@pytest.mark.skipif(build.find_obstacle() is not None, reason="no C++ compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other signals")
def test_a_process_whose_file_is_cut_says_so_when_it_dies(folder):
    done = subprocess.run([sys.executable, "-c", CUT, str(folder)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGBUS
    assert "a weight file was cut while it was in use" in done.stderr
    assert not done.stdout


def test_the_front_door_maps_and_computes_the_same():
    mapped = phiscope.load("nano", mode="fp16-fp32-cpu", mapped=True)
    read = phiscope.load("nano", mode="fp16-fp32-cpu")
    assert mapped.model.model.sources
    assert not read.model.model.sources
    assert (
        mapped.generate("def", max_new_tokens=5).text == read.generate("def", max_new_tokens=5).text
    )


def test_text_is_not_generated_from_what_changed(folder):
    phi = phiscope.load("nano", mode="fp16-fp32-cpu", mapped=True)
    phi.model.model.sources = load(folder).model.sources
    for path in folder.glob("*.safetensors"):
        os.utime(path, (1, 1))
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        phi.generate("def", max_new_tokens=5)
