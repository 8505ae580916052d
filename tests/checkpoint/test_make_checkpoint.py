"""benchmarks/make_checkpoint.py: its models are the same in every layout, and sane."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from phiscope.checkpoint import describe, load_model
from phiscope.packing import pack

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "make_checkpoint.py"
SIZES = {
    **{"num_hidden_layers": 12, "hidden_size": 128, "intermediate_size": 512},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 300},
}


def load_script():
    spec = importlib.util.spec_from_file_location("make_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


def make(folder, *options):
    sizes = [f"{name}={value}" for name, value in SIZES.items()]
    return load_script().main([str(folder), *options, "--set", *sizes])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "D"
    assert make(folder, "--dtype", "float32") == 0
    return folder


def test_same_seed_makes_the_same_model_in_another_layout(folder, tmp_path):
    options = ("--layout", "A", "--dtype", "float32", "--max-shard-size", "1000000")
    assert make(tmp_path / "A", *options) == 0
    assert (describe(tmp_path / "A").layout, describe(folder).layout) == ("A", "D")
    first = load_model(folder, dtype=torch.float32).state_dict()
    second = load_model(tmp_path / "A", dtype=torch.float32).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rows_differ(folder):
    weight = load_model(folder, dtype=torch.float32).model.layers[0].mlp.fc1.weight
    assert len(weight.unique(dim=0)) == len(weight)


def test_activations_keep_their_size_through_the_blocks(folder):
    model = load_model(folder, dtype=torch.float32)
    ids, packed = pack([list(range(1, 60))])
    with torch.no_grad():
        hidden = model.model(ids, packed)
        logits = model(ids, packed)
    assert 0.5 < hidden.std() < 2  # after the final norm, whose weights are about one
    assert 0.5 < logits.std() < 2
    probabilities = logits.softmax(-1)
    assert probabilities.max() < 0.5  # not one token for every text


def test_existing_folder_is_refused_in_one_line(folder, capsys):
    assert make(folder) == 1
    message = capsys.readouterr().err
    assert message.startswith("make_checkpoint: ")
    assert "exists and is not empty" in message
    assert message.count("\n") == 1
