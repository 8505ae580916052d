import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from phiscope.checkpoint.weights import (
    Span,
    Weights,
    convert_values,
    find_non_finite,
    read_spans,
    write_weights,
)
from phiscope.errors import CheckpointError, NonFiniteError, UnsupportedError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def make_tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (37, 16), "vector": (5,), "large": (70_000, 40), "empty": (0, 3)}
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }


def write(folder, tensors, max_shard_size=10**9):
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_weights(folder, entries, iter(tensors.values()), max_shard_size=max_shard_size)


def read(folder, dtype=None):
    """Every tensor of a folder, in its own dtype or another."""
    with Weights(folder) as weights:
        found = {
            name: torch.empty(stored.shape, dtype=dtype or stored.dtype)
            for name, stored in weights.tensors.items()
        }
        assert read_spans(Span(weights.tensors[x], 0, found[x], x) for x in found) == set()
    return found


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("dtype", FLOATS)
def test_written_files_are_read_by_the_safetensors_package(tmp_path, dtype):
    tensors = make_tensors(dtype)
    write(tmp_path, tensors)
    assert_same(load_file(tmp_path / "model.safetensors"), tensors)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", FLOATS)
def test_files_of_the_safetensors_package_are_read(tmp_path, dtype):
    tensors = make_tensors(dtype)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same(read(tmp_path), tensors)


def test_tensors_of_other_dtypes_are_located(tmp_path):
    tensors = {
        str(dtype): torch.ones(3).to(dtype)
        for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same(read(tmp_path), tensors)


@pytest.mark.parametrize(("limit", "count"), [(1, 4), (3000, 3)])
def test_shards_hold_what_one_file_holds(tmp_path, limit, count):
    tensors = make_tensors()
    write(tmp_path, tensors, max_shard_size=limit)
    shards = sorted(path.name for path in tmp_path.glob("*-of-*"))
    assert len(shards) == count
    assert shards[0] == f"model-00001-of-0000{count}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    assert_same(read(tmp_path), tensors)


def test_shard_size_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="max_shard_size must be positive"):
        write(tmp_path, make_tensors(), max_shard_size=0)


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_reading_into_another_dtype_is_converting(tmp_path, source, target):
    tensors = make_tensors(source)
    write(tmp_path, tensors)
    assert_same(read(tmp_path, target), {name: x.to(target) for name, x in tensors.items()})


def test_rows_are_read_into_rows(tmp_path):
    tensors = make_tensors()
    write(tmp_path, tensors)
    out = torch.zeros(6, 16)
    with Weights(tmp_path) as weights:
        read_spans([Span(weights.tensors["matrix"], 30, out[2:5], "it")])
    assert torch.equal(out[2:5], tensors["matrix"][30:33])
    assert out[:2].abs().sum() == out[5:].abs().sum() == 0


def test_every_byte_read_is_counted_once(tmp_path):
    tensors = make_tensors()
    write(tmp_path, tensors)
    counts = []
    with Weights(tmp_path) as weights:
        stored = weights.tensors["large"]
        read_spans([Span(stored, 0, torch.empty(stored.shape), "it")], on_bytes=counts.append)
    assert sum(counts) == tensors["large"].nbytes
    assert len(counts) > 1


@pytest.mark.parametrize("form", ["single", "sharded"])
def test_torch_files_hold_what_safetensors_hold(tmp_path, form):
    tensors = make_tensors(torch.bfloat16)
    tensors["parameter"] = torch.nn.Parameter(torch.ones(3))
    if form == "single":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        files = {name: f"pytorch_model-{name}.bin" for name in tensors}
        for name, file in files.items():
            torch.save({name: tensors[name]}, tmp_path / file)
        index = json.dumps({"weight_map": files})
        (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    assert_same(read(tmp_path), {name: x.detach() for name, x in tensors.items()})


def test_views_of_one_storage_are_told_apart(tmp_path):
    whole = torch.randn(9, 4)
    tensors = {"whole": whole, "part": whole[3:5]}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert_same(read(tmp_path), tensors)


def test_strided_view_is_refused(tmp_path):
    torch.save({"turned": torch.randn(3, 4).t()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match="'turned' is stored as a strided view"):
        Weights(tmp_path)


def test_safetensors_are_preferred_to_pickles(tmp_path):
    write(tmp_path, {"good": torch.ones(2)})
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    assert list(read(tmp_path)) == ["good"]


def test_folder_without_weights_says_what_was_looked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"looked for model\.safetensors"):
        Weights(tmp_path)
    with pytest.raises(CheckpointError, match="no folder"):
        Weights(tmp_path / "absent")


def test_interrupted_write_leaves_nothing(tmp_path):
    def tensors():
        yield torch.ones(3)
        raise KeyboardInterrupt

    entries = {"a": (torch.float32, (3,)), "b": (torch.float32, (4,))}
    with pytest.raises(KeyboardInterrupt):
        write_weights(tmp_path, entries, tensors(), max_shard_size=10**9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tensor", [torch.ones(4), torch.ones(3, dtype=torch.float16)])
def test_tensor_that_is_not_the_announced_one_is_refused(tmp_path, tensor):
    entries = {"a": (torch.float32, (3,))}
    with pytest.raises(ValueError, match="'a' was announced as"):
        write_weights(tmp_path, entries, iter([tensor]), max_shard_size=10**9)


def test_number_beyond_the_new_dtype_is_named():
    with pytest.raises(
        NonFiniteError, match=r"'w' holds 70000, beyond the range of torch\.float16"
    ):
        convert_values(torch.tensor([1.0, -7e4]), torch.float16, "w")
    infinite = torch.tensor([1.0, float("inf")])
    converted, finite = convert_values(infinite, torch.float16, "w")
    assert torch.equal(converted, infinite.half())
    assert not finite


def test_tensors_with_nan_are_found_in_any_chunk(tmp_path):
    tensors = make_tensors()
    tensors["large"][69_999, 39] = float("nan")
    tensors["vector"][0] = -float("inf")
    write(tmp_path, tensors)
    with Weights(tmp_path) as weights:
        assert find_non_finite(weights.tensors.values()) == ["vector", "large"]
        out = torch.empty(70_000, 40)
        assert read_spans([Span(weights.tensors["large"], 0, out, "ours")]) == {"ours"}
