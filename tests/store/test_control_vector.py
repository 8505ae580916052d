import sys

import numpy as np
import pytest
import torch

from phiscope.errors import MissingExtraError, NonFiniteError
from phiscope.store.control_vector import export_control_vector

gguf = pytest.importorskip("gguf")


def make_direction(seed):
    return torch.randn(32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(path):
    reader = gguf.GGUFReader(path)
    facts = {key: field.contents() for key, field in reader.fields.items()}
    return facts, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def test_llama_cpp_finds_what_it_reads(tmp_path):
    directions = {f"resid_post.{layer}.mean": make_direction(layer) for layer in (7, 1, 31)}
    export_control_vector(directions, tmp_path / "v.gguf")
    facts, tensors = read(tmp_path / "v.gguf")
    assert facts["general.architecture"] == "controlvector"
    assert facts["controlvector.model_hint"] == "phi2"
    assert facts["controlvector.layer_count"] == 3
    assert list(tensors) == ["direction.1", "direction.7", "direction.31"]
    for layer in (1, 7, 31):
        tensor = tensors[f"direction.{layer}"]
        assert (tensor.dtype, tensor.shape) == (np.float32, (32,))
        assert np.array_equal(tensor, make_direction(layer).float().numpy())


def test_the_stream_into_a_block_is_that_out_of_the_one_before(tmp_path):
    export_control_vector({"resid_pre.8": make_direction(0)}, tmp_path / "pre.gguf")
    export_control_vector({"resid_post.7": make_direction(0)}, tmp_path / "post.gguf")
    assert (tmp_path / "pre.gguf").read_bytes() == (tmp_path / "post.gguf").read_bytes()


def test_places_that_llama_cpp_does_not_reach_are_named(tmp_path):
    names = ["embeddings.mean", "resid_post.0.mean", "resid_post.1.mean", "final_norm.mean"]
    left_out = export_control_vector(
        {name: make_direction(0) for name in names}, tmp_path / "v.gguf"
    )
    assert left_out == ["embeddings.mean", "resid_post.0.mean", "final_norm.mean"]
    assert list(read(tmp_path / "v.gguf")[1]) == ["direction.1"]


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ({"attn_out.3": make_direction(0)}, "attn_out.3 is not of the residual stream"),
        ({"resid_post.0": make_direction(0)}, r"there are only resid_post\.0"),
        ({}, "there are only none"),
        (
            {"resid_post.2.mean": make_direction(0), "resid_post.2.last": make_direction(0)},
            "both lie after block 2",
        ),
        ({"resid_post.2": torch.ones(2, 3)}, r"must be \(hidden,\), got \(2, 3\)"),
        (
            {"resid_post.2": torch.ones(2), "resid_post.3": torch.ones(3)},
            r"one width, got \[2, 3\]",
        ),
    ],
)
def test_what_is_no_control_vector_is_refused(tmp_path, directions, message):
    with pytest.raises(ValueError, match=message):
        export_control_vector(directions, tmp_path / "v.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_direction_with_a_nan_is_refused(tmp_path):
    with pytest.raises(NonFiniteError, match=r"resid_post\.2 has a NaN"):
        export_control_vector({"resid_post.2": [1.0, float("nan")]}, tmp_path / "v.gguf")


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'phiscope\[gguf\]'"):
        export_control_vector({"resid_post.2": [1.0, 2.0]}, tmp_path / "v.gguf")
