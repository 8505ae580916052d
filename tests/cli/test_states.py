import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import phiscope

TEXT = "hidden states"


@pytest.fixture(scope="module")
def phi(folder):
    return phiscope.load(folder, mode="fp32-cpu")


def test_table_has_the_norms_of_every_hidden_state(run_model, phi):
    code, out, err = run_model("states", TEXT)
    norms = phi.hidden_states(TEXT).norm(dim=-1)  # (L + 1, T)
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert "13 tokens" in err
    assert lines[0] == ["point", "mean", "least", "most"]
    assert [line[0] for line in lines[1:]] == ["embeddings", "resid_post.0", "final_norm"]
    assert [line[1] for line in lines[1:]] == [f"{x:.2f}" for x in norms.mean(dim=1)]
    assert [line[3] for line in lines[1:]] == [f"{x:.2f}" for x in norms.amax(dim=1)]


def test_json_has_the_norm_of_every_token(run_model, phi):
    _, out, _ = run_model("states", TEXT, "b", "--layers", "1", "--json")
    rows = json.loads(out)["rows"]
    norms = phi.hidden_states(TEXT, layers=[1])[0].norm(dim=-1)
    assert [row["num_tokens"] for row in rows] == [13, 1]
    assert rows[0]["norms"]["resid_post.0"] == pytest.approx(norms.tolist())


def test_npy_file_of_one_text_is_all_its_hidden_states(run_model, phi, tmp_path):
    path = tmp_path / "states.npy"
    assert run_model("states", TEXT, "--out", path)[0] == 0
    np.testing.assert_array_equal(np.load(path), phi.hidden_states(TEXT).numpy())


def test_pooled_npy_file_has_a_row_for_each_text(run_model, phi, tmp_path):
    path = tmp_path / "states.npy"
    run_model("states", TEXT, "b", "--layers", "0,2", "--pool", "mean", "--out", path)
    wanted = np.stack([phi.embed([TEXT, "b"], layer) for layer in (0, 2)], axis=1)
    np.testing.assert_array_equal(np.load(path), wanted)


def test_safetensors_file_has_a_tensor_for_each_text_and_point(run_model, phi, tmp_path):
    path = tmp_path / "states.safetensors"
    run_model("states", TEXT, "b", "--points", "z.1, attn_probs.0", "--out", path)
    tensors = load_file(path)
    wanted = phi.capture([TEXT, "b"], ["z.1", "attn_probs.0"])
    assert tensors.keys() == {f"{i}.{name}" for i in (0, 1) for name in ("token_ids", *wanted)}
    assert bytes(tensors["0.token_ids"].tolist()) == TEXT.encode()
    torch.testing.assert_close(tensors["0.z.1"], wanted["z.1"][0])
    torch.testing.assert_close(tensors["1.attn_probs.0"], wanted["attn_probs.0"][1])


def test_a_bad_row_keeps_its_place_as_nan(run_model, phi, tmp_path, type_in):
    type_in(b"a\n\nc\n")
    path = tmp_path / "states.safetensors"
    code, out, err = run_model("states", "--pool", "last", "--out", path, "--json")
    vectors = load_file(path)["final_norm"]
    assert code == 3
    assert "row 1: empty" in err
    assert json.loads(out)["errors"] == [{"index": 1, "error": "empty"}]
    assert vectors.isnan().all(dim=1).tolist() == [False, True, False]
    torch.testing.assert_close(vectors[2], torch.tensor(phi.embed("c", pool="last")))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--layers", "3"), "hidden_states[0] to [2]"),
        (("--points", "resid_mid.0"), "parallel"),
        (("--points", "attn_probs.0"), "map"),
        (("--layers", "0", "--points", "z.0"), "one of them"),
        (("--pool", "mean"), "--out"),
        (("--out", "states.csv"), ".npy or .safetensors"),
        (("--out", "no/such/folder/states.npy"), "no folder"),
        (("--points", "z.0,mlp_pre.0", "--out", "states.npy"), "different shapes"),
        (("second text", "--out", "states.npy"), "--pool"),
    ],
)
def test_what_cannot_be_shown_or_written_is_a_usage_error(
    words, told, run_model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_model("states", TEXT, *words)
    assert (code, out) == (2, "")
    assert told in err
    assert list(tmp_path.iterdir()) == []
