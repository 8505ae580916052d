"""States of models with integer weights are told as such, and verified without their rounding."""

import json

import numpy as np
import pytest
import torch

import phiscope
from phiscope.checkpoint.hub import resolve
from phiscope.extraction.costs import Costs
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.inputs import open_source
from phiscope.extraction.options import make_options
from phiscope.extraction.progress import count_matmul_flops
from phiscope.extraction.reference import Reference
from phiscope.extraction.verification import verify_rows
from phiscope.inference import name_kernels
from phiscope.kernels import build
from phiscope.quantized import QuantizedLinear
from phiscope.store import open_store
from phiscope.wide import count_scratch_bytes, name_arithmetic, name_weights

TEXTS = ["def add(a, b):", "", "x = 1", "import torch\n" * 9, "a list of numbers"]
MODES = ("int8-cpu", "int4-cpu", "int8-fp32-cpu")
READING = {"points": "resid_post.[:2], z.1, final_norm", "pool": "mean", "shard_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The small embedded model in 8 bits."""
    folder = tmp_path_factory.mktemp("models") / "int8"
    phiscope.quantize(resolve("nano"), folder)
    return folder


@pytest.fixture(scope="module")
def phis():
    return {mode: phiscope.load("nano", mode=mode) for mode in (*MODES, "fp32-cpu", "bf16-cpu")}


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make_extractor(phi, reading=READING):
    return Extractor(phi.model, phi.tokenizer, make_options(**reading))


@pytest.mark.parametrize("mode", MODES)
def test_a_store_says_what_it_was_made_of_and_is_found_sound(phis, tmp_path, mode):
    report = phis[mode].extract(TEXTS, tmp_path / "s", verify=9, **READING)
    assert report.verification.is_sound
    software = open_store(tmp_path / "s").manifest["job"]["software"]
    assert software["weights"] == mode[:4]
    assert software["arithmetic"] == ("float32" if "fp32" in mode else "int8")
    assert software["kernels"] == build.name_compiler()


def test_a_row_that_is_another_is_found(phis, tmp_path):
    phis["int8-cpu"].extract(TEXTS, tmp_path / "s", **READING)
    first, *_, last = open_store(tmp_path / "s").locate("final_norm.mean")
    values = np.memmap(last.path, last.dtype, "r+", last.offset, last.shape)
    values[-1] = np.memmap(first.path, first.dtype, "r", first.offset, first.shape)[0]
    values.flush()
    store, extractor = open_store(tmp_path / "s"), make_extractor(phis["int8-cpu"], READING)
    rows = [row for row in open_source(TEXTS).rows() if row.fault is None]
    columns = verify_rows(extractor, store, rows).columns
    assert [name for name, found in columns.items() if not found.is_sound] == ["final_norm.mean"]


def test_a_mapped_folder_gives_the_bytes_of_weights_rounded_in_memory(phis, folder, tmp_path):
    phis["int8-cpu"].extract(TEXTS, tmp_path / "rounded", **READING)
    phiscope.load(folder).extract(TEXTS, tmp_path / "mapped", **READING)
    assert read_files(tmp_path / "mapped") == read_files(tmp_path / "rounded")


def test_the_command_verifies_it_by_the_float_checkpoint_and_by_the_folder(folder, tmp_path):
    from phiscope.cli import main

    corpus, store = tmp_path / "corpus.txt", tmp_path / "s"
    corpus.write_text("\n".join(text.replace("\n", " ") for text in TEXTS if text))
    words = ["--points", "resid_post.1", "--pool", "last", "--model", str(folder)]
    assert main(["extract", str(corpus), "--out", str(store), *words]) == 0
    for model in (folder, "nano"):
        assert main(["verify", str(store), "--model", str(model)]) == 0
        verification = json.loads((store / "manifest.json").read_text())["verification"]
        (column,) = verification["columns"].values()
        assert 1e-4 < column["max_rel"] < 0.05 < column["tolerance"]


def test_plan_counts_integer_layers(phis):
    exact = make_extractor(phis["fp32-cpu"])
    for mode in MODES:
        extractor = make_extractor(phis[mode])
        assert count_matmul_flops(extractor) == count_matmul_flops(exact) > 0
        assert Costs(extractor).count_operations([]) == 0


def test_scratch_is_what_the_largest_layer_is_widened_to(phis):
    head = phis["fp32-cpu"].model.lm_head.weight.numel()
    sizes = {mode: count_scratch_bytes(phi.model) for mode, phi in phis.items()}
    assert sizes["int8-fp32-cpu"] == 5 * head
    assert sizes["int8-cpu"] == sizes["int4-cpu"] == sizes["fp32-cpu"] == 0


def test_weights_arithmetic_and_kernels_are_named(phis):
    told = {
        mode: (name_weights(phi.model), name_arithmetic(phi.model)) for mode, phi in phis.items()
    }
    assert told == {
        "int8-cpu": ("int8", "int8"),
        "int4-cpu": ("int4", "int8"),
        "int8-fp32-cpu": ("int8", "float32"),
        "fp32-cpu": ("float32", "float32"),
        "bf16-cpu": ("bfloat16", "bfloat16"),
    }
    plain = phiscope.load_model(resolve("nano"), dtype=torch.float32)
    assert (name_kernels(plain), name_kernels(phis["int8-cpu"].model)) == (
        None,
        build.name_compiler(),
    )


def test_the_reference_keeps_the_integers_and_rounds_no_activations(phis):
    model = phis["int8-cpu"].model
    reference = Reference(make_extractor(phis["int8-cpu"]))._model
    layers = [m for m in reference.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 17
    assert all(layer.wide for layer in layers)
    assert not any(m.wide for m in model.modules() if isinstance(m, QuantizedLinear))
    ours, theirs = (x.state_dict()["lm_head.panels"] for x in (model, reference))
    assert ours.data_ptr() == theirs.data_ptr()
