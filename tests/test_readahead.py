"""Weights that are read before torch is there: what is loaded is the same, or read as ever."""

import os
import subprocess
import sys

import pytest
import torch
from oracle import make_model

from phiscope import PhiConfig, readahead
from phiscope.checkpoint import load_model, save_checkpoint
from phiscope.errors import CheckpointError

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
linux = pytest.mark.skipif(sys.platform != "linux", reason="files are read ahead on Linux")


@pytest.fixture(autouse=True)
def read_small_files_too(monkeypatch):
    monkeypatch.setattr(readahead, "MIN_BYTES", 0)
    monkeypatch.setattr(readahead, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr(readahead, "_GPU", "/dev/none")
    yield
    readahead.end()


@pytest.fixture
def folder(tmp_path):
    model = make_model(CONFIG, dtype=torch.bfloat16)
    save_checkpoint(model, tmp_path / "model", max_shard_size=100_000)
    return tmp_path / "model"


def load(folder, **options):
    return load_model(folder, dtype=torch.bfloat16, **options).state_dict()


def list_copies():
    return list(readahead._copies.values())


def lies_in_copy(tensor):
    """Whether a tensor lies in the memory of a copy."""
    for copy in list_copies():
        start = torch.frombuffer(copy.wait(), dtype=torch.uint8).data_ptr()
        if start <= tensor.data_ptr() < start + copy.size:
            return True
    return False


@linux
@pytest.mark.parametrize("layout", "ABCD")
def test_a_model_is_made_of_the_tensors_as_they_lie(tmp_path, layout):
    saved = make_model(CONFIG, dtype=torch.bfloat16)
    save_checkpoint(saved, tmp_path / "x", layout=layout, max_shard_size=100_000)
    readahead.begin(str(tmp_path / "x"), "bf16-fp32-cpu")
    assert len(list_copies()) > 1
    state = load(tmp_path / "x")
    assert all(state[name].equal(tensor) for name, tensor in saved.state_dict().items())
    lying = {name for name, tensor in state.items() if lies_in_copy(tensor)}
    assert {"model.layers.0.mlp.fc1.weight", "lm_head.weight"} <= lying
    assert all(state[name].data_ptr() % 4 == 0 for name in lying)
    readahead.end()
    assert all(state[name].equal(tensor) for name, tensor in saved.state_dict().items())


@linux
def test_what_is_written_to_the_weights_stays_here_and_what_to_the_file_there(folder):
    before = load(folder)
    readahead.begin(str(folder), "auto")
    state = load(folder)
    state["lm_head.weight"].zero_()
    readahead.end()
    assert load(folder)["lm_head.weight"].equal(before["lm_head.weight"])
    for path in folder.glob("*.safetensors"):
        os.truncate(path, 100)
    assert state["model.embed_tokens.weight"].equal(before["model.embed_tokens.weight"])


@linux
def test_a_file_written_to_meanwhile_is_read_again(folder):
    readahead.begin(str(folder), "auto")
    model = make_model(CONFIG, seed=1, dtype=torch.bfloat16)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    save_checkpoint(model, folder, max_shard_size=100_000)
    state = load(folder)
    assert all(state[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert not any(lies_in_copy(tensor) for tensor in state.values())


@linux
def test_what_is_damaged_is_told_as_ever(folder):
    state = dict(make_model(CONFIG, dtype=torch.bfloat16).state_dict())
    path = sorted(folder.glob("*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-10])
    readahead.begin(str(folder), "auto")
    with pytest.raises(CheckpointError, match="cut short"):
        load(folder)
    readahead.end()
    data[-2:] = b"\x80\x7f"  # an infinity
    path.write_bytes(data)
    readahead.begin(str(folder), "auto")
    with pytest.warns(RuntimeWarning, match="NaN or infinity"):
        assert len(load(folder)) == len(state)


@linux
@pytest.mark.parametrize("mode", ["fp32-cpu", "int8-cpu", "bf16", "nonsense"])
def test_other_modes_read_nothing_ahead(folder, mode):
    readahead.begin(str(folder), mode)
    assert not list_copies()


@linux
def test_where_a_gpu_may_be_nothing_is_read_ahead(folder, monkeypatch):
    monkeypatch.setattr(readahead, "_GPU", "/dev/null")
    readahead.begin(str(folder), "auto")
    assert not list_copies()


WRONG = [
    b"",
    b"\xff" * 100,
    b"\x10" + bytes(7) + b"[]" + b" " * 14,
    b"\x02" + bytes(7) + b"{}",
    b"\x0c" + bytes(7) + b'{"a": {}}   ',
]
WRONG_INDEX = ('{"weight_map": {"a": "../../etc"}}', "{}", "[]", '{"weight_map": 1}', "[" * 9999)


@pytest.mark.parametrize("content", WRONG)
def test_what_is_no_checkpoint_is_left_to_the_loader(tmp_path, content):
    readahead.begin(str(tmp_path / "none"), "auto")
    readahead.begin("microsoft/phi-2", "auto")
    (tmp_path / "model.safetensors").write_bytes(content)
    readahead.begin(str(tmp_path), "auto")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    readahead.begin(str(tmp_path), "auto")
    for index in WRONG_INDEX:
        (tmp_path / "model.safetensors.index.json").write_text(index)
        readahead.begin(str(tmp_path), "auto")
    readahead.begin("~nobody-here/x", "auto")
    assert not list_copies()


@linux
def test_nothing_of_it_needs_torch():
    code = "import sys; from phiscope import readahead; readahead.begin('.', 'auto'); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
