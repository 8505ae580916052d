import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from phiscope.errors import StoreError
from phiscope.store import tensor_file
from phiscope.store.tensor_file import TensorEntry, write_tensor_file, write_whole


def test_a_tensor_in_pieces_is_the_whole(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(6, 4)
    pieces = iter([array[:1], array[1:5][:, ::-1][:, ::-1], array[5:]])
    entries = {
        "none": TensorEntry("F64", (0, 3), []),
        "one": TensorEntry("I64", (), [np.array(7)]),
        "six": TensorEntry("F32", (6, 4), pieces),
    }
    write_tensor_file(tmp_path / "t.safetensors", entries, {"a": "\N{GREEK SMALL LETTER PI}"})
    tensors = load_file(tmp_path / "t.safetensors")
    assert torch.equal(tensors["six"], torch.from_numpy(array))
    assert (tensors["one"].item(), tuple(tensors["none"].shape)) == (7, (0, 3))


def test_pieces_that_do_not_add_up_leave_no_file(tmp_path):
    entry = TensorEntry("F32", (6,), [np.ones(5, dtype=np.float32)])
    with pytest.raises(ValueError, match="'x' was announced with 24 bytes and came with 20"):
        write_tensor_file(tmp_path / "t", {"x": entry}, {})
    assert not list(tmp_path.iterdir())


def test_a_header_that_no_reader_takes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "MAX_HEADER_BYTES", 100)
    with pytest.raises(StoreError, match="header of t would take 208 bytes"):
        write_tensor_file(tmp_path / "t", {}, {"ids": "x" * 170})
    assert not list(tmp_path.iterdir())


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="no dtype 'float'; choose from F64, I64"):
        TensorEntry("float", (1,), [])


def test_an_interrupted_file_never_has_its_name(tmp_path):
    def write_half():
        with write_whole(tmp_path / "x") as write:
            write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert not list(tmp_path.iterdir())
