import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import phiscope


@pytest.fixture
def copy(folder, tmp_path):
    """The random model in a folder that a test may damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_info_says_what_the_headers_hold(run, folder):
    code, out, _ = run("info", folder)
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert facts["layout"] == "D"
    assert facts["parameters"] == f"{phiscope.load(folder).config.num_parameters:,}"
    assert facts["layers"] == "2 of 32 with 4 heads of 8"


def test_info_in_json_has_the_config(run, folder):
    found = json.loads(run("info", folder, "--json")[1])
    assert found["layout"] == "D"
    assert found["config"]["hidden_size"] == 32
    assert found["dtypes"] == {"float32": 33}


def test_verify_finds_a_sound_folder_sound_and_gives_its_hashes(run, folder):
    code, out, err = run("verify", folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (code, err) == (0, "")
    assert f"{digest}  model.safetensors" in out.splitlines()


def test_verify_names_a_tensor_with_nan_and_exits_with_4(run, copy):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.fc1.bias"][3] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    code, out, err = run("verify", copy, "--json")
    assert code == 4
    assert json.loads(out)["non_finite"] == ["model.layers.1.mlp.fc1.bias"]
    assert "model.layers.1.mlp.fc1.bias" in err


def test_a_model_with_nan_weights_loads_with_a_warning(run, copy, recwarn):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.fc1.bias"][3] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        _, _, err = run("states", "a", "--layers", "2", "--model", copy)
        _, _, err_of_less = run("states", "a", "--layers", "0,1", "--model", copy)
    assert "warning: 1 tensors" in err
    assert "warning" not in err_of_less  # the second block is not read


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_file_cut_short_is_a_checkpoint_fault(command, run, copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    code, _, err = run(command, copy)
    assert code == 4
    assert "model.safetensors" in err
    assert "cut short" in err


def test_convert_there_and_back_gives_the_same_tensors(run, folder, tmp_path):
    there, back = tmp_path / "there", tmp_path / "back"
    assert run("convert", folder, there, "--layout", "B")[0] == 0
    assert run("convert", there, back)[0] == 0
    assert json.loads(run("info", there, "--json")[1])["layout"] == "B"
    before, after = (load_file(path / "model.safetensors") for path in (folder, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_convert_to_another_dtype_keeps_the_tokenizer(run, folder, tmp_path):
    out = json.loads(run("convert", folder, tmp_path / "half", "--dtype", "float16", "--json")[1])
    assert out["layout"] == "D"
    phi = phiscope.load(tmp_path / "half", mode="fp32-cpu")
    assert phi.config.dtype == "float16"
    assert phi.tokenizer.fingerprint == phiscope.load(folder).tokenizer.fingerprint


def test_convert_refuses_a_folder_that_holds_something(run, folder, copy):
    code, _, err = run("convert", folder, copy)
    assert code == 4
    assert "not empty" in err


@pytest.mark.parametrize("command", ["info", "verify", "generate"])
def test_a_name_that_leads_nowhere_is_a_checkpoint_fault(command, run):
    words = ("hi", "--model", "nowhere") if command == "generate" else ("nowhere",)
    code, out, err = run(command, *words)
    assert (code, out) == (4, "")
    assert "no folder 'nowhere'" in err


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_quantize_writes_a_folder_that_all_commands_know(run, folder, tmp_path, format):
    there = tmp_path / "there"
    code, out, err = run("quantize", folder, there, "--format", format, "--json")
    written = json.loads(out)
    assert (code, err, written["format"]) == (0, "", format)
    assert written["bytes"] == sum(path.stat().st_size for path in there.iterdir())
    assert f"Phiscope's {format}" in run("info", there)[1]
    assert json.loads(run("info", there, "--json")[1])["config"]["quantization"] == format
    code, out, _ = run("verify", there)
    assert code == 0
    assert "tensors as Phiscope rounds them, all shapes right" in out
    words = ("a text", "--max-new-tokens", "5", "--model")
    code, text, _ = run("generate", *words, there)
    assert (code, text) == run("generate", *words, folder, "--mode", f"{format}-cpu")[:2]
    assert code == 0


def test_what_a_folder_of_integers_does_not_serve_is_refused_with_the_remedy(run, folder, tmp_path):
    there = tmp_path / "there"
    assert run("quantize", folder, there)[0] == 0
    code, _, err = run("generate", "a", "--model", there, "--mode", "fp32-cpu")
    assert code == 1
    assert "use mode 'int8-cpu'" in err
    for words in (("convert", there), ("quantize", there), ("export-hub", there)):
        code, _, err = run(*words, tmp_path / "other")
        assert code != 0
        assert "take the float checkpoint" in err
    assert not (tmp_path / "other").exists()
