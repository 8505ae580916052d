import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_stores import JOB, make_text_store, make_token_store

from phiscope.errors import StoreError
from phiscope.store import Column, Disk
from phiscope.store.export import export_npy, export_safetensors, select_columns
from phiscope.store.schema import DTYPES

TEXTS = [("a", [5, 6, 7]), ("b", [8]), ("b", [9, 8]), ("d", [1, 2, 3, 4]), ("e", [50])]
STREAM = [Column(name=f"resid_post.{layer}", dtype="float16", shape=(6,)) for layer in (0, 3)]
POOLED = [
    Column(name="resid_post.1.mean", dtype="float32", shape=(6,)),
    Column(name="resid_post.12.mean", dtype="bfloat16", shape=(6,)),
    Column(name="z.0.last", dtype="float16", shape=(2, 3)),
]
IDS = ["a", "b", "\N{GREEK SMALL LETTER PI}", "d", "e", "f"]


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    return make_text_store(tmp_path_factory.mktemp("stores") / "pooled", POOLED, IDS)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return make_token_store(tmp_path_factory.mktemp("stores") / "tokens", STREAM, TEXTS)


def read_metadata(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return {key: json.loads(metadata[key]) for key in ("columns", "ids", "job")}


def test_pooled_columns_come_back_from_safetensors(pooled, tmp_path):
    export_safetensors(pooled, tmp_path / "states.safetensors")
    tensors = load_file(tmp_path / "states.safetensors")
    assert set(tensors) == {*pooled.columns, "num_tokens"}
    for name in pooled.columns:
        assert tensors[name].dtype == pooled.tensor(name).dtype
        assert torch.equal(tensors[name], pooled.tensor(name))
    assert tensors["num_tokens"].tolist() == [1, 2, 3, 4, 5, 6]
    expected = {"columns": list(pooled.columns), "ids": IDS, "job": JOB}
    assert read_metadata(tmp_path / "states.safetensors") == expected


def test_tokens_of_several_points_are_one_tensor(tokens, tmp_path):
    export_safetensors(tokens, tmp_path / "states.safetensors")
    tensors = load_file(tmp_path / "states.safetensors")
    expected = torch.stack([tokens.tensor(name) for name in tokens.columns])
    assert torch.equal(tensors["hidden_states"], expected)
    assert tensors["token_ids"].tolist() == [token for _, ids in TEXTS for token in ids]
    assert tensors["positions"].tolist() == [i for _, ids in TEXTS for i in range(len(ids))]


def test_offsets_tell_where_each_text_is_even_if_two_share_an_id(tokens, tmp_path):
    export_safetensors(tokens, tmp_path / "states.safetensors")
    tensors = load_file(tmp_path / "states.safetensors")
    offsets = tensors["offsets"].tolist()
    ids = read_metadata(tmp_path / "states.safetensors")["ids"]
    texts = [
        (name, tensors["token_ids"][begin:end].tolist())
        for name, begin, end in zip(ids, offsets, offsets[1:], strict=False)
    ]
    assert texts == TEXTS


def test_tokens_of_one_point_have_no_dimension_for_it(tokens, tmp_path):
    export_safetensors(tokens, tmp_path / "states.safetensors", points=["resid_post.3"])
    states = load_file(tmp_path / "states.safetensors")["hidden_states"]
    assert torch.equal(states, tokens.tensor("resid_post.3"))


def test_tokens_of_unlike_points_have_a_tensor_each(tmp_path):
    columns = [*STREAM, Column(name="z.0", dtype="float32", shape=(2, 3))]
    store = make_token_store(tmp_path / "store", columns, TEXTS)
    export_safetensors(store, tmp_path / "states.safetensors")
    tensors = load_file(tmp_path / "states.safetensors")
    for name in store.columns:
        assert torch.equal(tensors[name], store.tensor(name))
    assert "hidden_states" not in tensors


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_column_comes_back_from_npy(tmp_path, dtype):
    column = Column(name="z.0.mean", dtype=dtype, shape=(2, 3))
    store = make_text_store(tmp_path / "store", [column], IDS)
    export_npy(store, "z.0.mean", tmp_path / "states.npy")
    array = np.load(tmp_path / "states.npy")
    view = store["z.0.mean"]
    expected = view.float32() if dtype == "bfloat16" else view.numpy()
    assert array.dtype == expected.dtype
    assert np.array_equal(array, expected)
    assert np.load(tmp_path / "states.npy", mmap_mode="r").shape == (6, 2, 3)


def test_an_empty_store_is_exported_as_one(tmp_path):
    store = make_token_store(tmp_path / "store", STREAM[:1], [])
    export_safetensors(store, tmp_path / "states.safetensors")
    tensors = load_file(tmp_path / "states.safetensors")
    assert tensors["hidden_states"].shape == (0, 6)
    assert tensors["offsets"].tolist() == [0]
    export_npy(store, "resid_post.0", tmp_path / "states.npy")
    assert np.load(tmp_path / "states.npy").shape == (0, 6)


def test_columns_are_named_by_point_or_in_full(pooled):
    assert select_columns(pooled) == list(pooled.columns)
    assert select_columns(pooled, ["z.0.last", "resid_post.1"]) == ["z.0.last", "resid_post.1.mean"]
    with pytest.raises(StoreError, match=r"no column of 'resid_post\.2' in .*; did you mean"):
        select_columns(pooled, ["resid_post.2"])
    with pytest.raises(ValueError, match="no columns were named"):
        select_columns(pooled, [])


class FullDisk(Disk):
    """Holds `room` writes."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def write(self, path, file, data):
        self.room -= 1
        if self.room < 0:
            raise StoreError(f"cannot write {path}: no space left")
        super().write(path, file, data)


@pytest.mark.parametrize("room", range(3))
@pytest.mark.parametrize(
    ("name", "export"),
    [
        ("states.safetensors", lambda store, out, disk: export_safetensors(store, out, disk=disk)),
        ("states.npy", lambda store, out, disk: export_npy(store, "z.0.last", out, disk)),
    ],
)
def test_a_full_disk_leaves_the_file_that_was_there(pooled, tmp_path, name, export, room):
    out = tmp_path / name
    out.write_bytes(b"before")
    with pytest.raises(StoreError, match="no space left"):
        export(pooled, out, FullDisk(room))
    assert out.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [out]
