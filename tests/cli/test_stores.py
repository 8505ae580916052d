import hashlib
import json

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_stores import make_text_store

import phiscope
from phiscope.store import Column, open_store

TEXTS = ["a first text", "another", "the third of them", "a fourth"]
COLUMNS = (
    Column(name="resid_post.0.mean", dtype="float16", shape=(8,)),
    Column(name="resid_post.1.mean", dtype="float16", shape=(8,)),
)


@pytest.fixture
def store(tmp_path):
    """A store of six texts and two columns."""
    return make_text_store(tmp_path / "made", COLUMNS, list("abcdef")).path


@pytest.fixture
def corpus(tmp_path):
    """A file of four texts of two kinds."""
    rows = [{"id": f"t{n}", "text": text, "kind": "xy"[n % 2]} for n, text in enumerate(TEXTS)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def extracted(run, corpus, tmp_path):
    """A store that `extract` made of that file."""
    words = ("--points", "resid_post.[:]", "--pool", "mean", "--dtype", "float32")
    out = tmp_path / "states"
    assert (
        run("extract", corpus, *words, "--out", out, "--model", "nano", "--shard-size", 2)[0] == 0
    )
    return out


def test_view_is_a_table_and_a_picture_in_ascii(run, store, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    code, out, err = run("view", store)
    table, _, picture = out.partition("\n\n")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in table.splitlines()] == [
        "column",
        *(column.name for column in COLUMNS),
    ]
    assert "residual stream" in picture
    assert out.isascii()
    assert max(map(len, picture.splitlines())) <= 60


def test_view_in_json_has_the_figures(run, store):
    code, out, _ = run("view", store, "--json")
    found = json.loads(out)
    assert code == 0
    assert [each["column"] for each in found["columns"]] == [column.name for column in COLUMNS]
    assert len(found["projection"]["coordinates"]) == 6


def test_view_draws_a_png(run, store, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, err = run("view", store, "--png", tmp_path / "view.png")
    assert code == 0
    assert "mean L2 norm" not in out
    assert "all 6 texts" in err
    assert (tmp_path / "view.png").read_bytes().startswith(b"\x89PNG")


def test_view_reads_the_classes_from_the_input_that_the_store_was_made_of(run, extracted):
    code, out, _ = run("view", extracted, "--label", "kind", "--json")
    assert code == 0
    assert json.loads(out)["projection"]["labels"] == ["x", "y", "x", "y"]
    moved = (extracted.parent / "corpus.jsonl").rename(extracted.parent / "moved.jsonl")
    code, _, err = run("view", extracted, "--label", "kind")
    assert code == 2
    assert "--input" in err
    found = run("view", extracted, "--label", "kind", "--json", "--input", moved)
    assert found == (0, out, "")


def test_verify_compares_rows_with_the_model_and_records_it(run, extracted):
    code, out, err = run("verify", extracted, "--rows", 3)
    facts, _, table = out.partition("column ")
    assert (code, err) == (0, "")
    assert "2 of 2 as they were written" in facts
    assert "3 computed again" in facts
    assert [line.split()[-1] for line in table.splitlines()[1:]] == ["yes"] * 4
    verification = open_store(extracted).manifest["verification"]
    assert verification["rows"] == 3
    assert verification["columns"]["resid_post.3.mean"]["max_rel"] < 1e-4
    assert json.loads(run("verify", extracted, "--rows", 3, "--json")[1]) == {
        "store": str(extracted),
        "sound": True,
        "faults": [],
        "verification": verification,
    }


def test_verify_finds_states_that_are_not_those_of_the_model(run, extracted):
    (_, path), *_ = sorted((path.name, path) for path in extracted.glob("*.arrow"))
    offset = next(span.offset for span in open_store(extracted).locate("resid_post.1.mean"))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.float32(1e3).tobytes())
    code, out, err = run("verify", extracted)
    assert code == 1
    assert "1 of 2 as they were written" in out
    assert f"{path} is not what was written" in err
    manifest = json.loads((extracted / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (extracted / "manifest.json").write_text(json.dumps(manifest))
    code, out, _ = run("verify", extracted)
    assert code == 1
    table = out.partition("column ")[2].splitlines()[1:]
    assert [line.split()[-1] for line in table] == ["yes", "NO", "yes", "yes"]


def test_verify_with_another_input_names_the_rows(run, extracted):
    corpus = extracted.parent / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("a fourth", "a fifth"))
    code, _, err = run("verify", extracted)
    assert code == 1
    assert "rows 2 to 3 of the input are not those" in err


def test_verify_without_the_input_checks_the_files_alone_and_says_so(run, extracted):
    moved = (extracted.parent / "corpus.jsonl").rename(extracted.parent / "moved.jsonl")
    code, out, err = run("verify", extracted)
    assert code == 0
    assert "computed again" not in out
    assert "only the files were checked; give --input" in err
    code, out, err = run("verify", extracted, "--input", moved)
    assert (code, err) == (0, "")
    assert "4 computed again" in out


def test_verify_of_a_store_that_is_no_extraction_checks_its_files(run, store, tmp_path):
    (tmp_path / "texts.txt").write_text("text\n")
    assert run("verify", store)[0] == 0
    code, _, err = run("verify", store, "--input", tmp_path / "texts.txt")
    assert code == 1
    assert "give --rows 0" in err


def test_verify_asks_for_a_model_that_the_store_does_not_name(run, tmp_path):
    phi, out = phiscope.load("nano", mode="fp32-cpu"), tmp_path / "states"
    phi.extract(["a text"], out, points="embeddings", pool="mean")
    (tmp_path / "texts.txt").write_text("a text\n")
    words = ("verify", out, "--input", tmp_path / "texts.txt")
    code, _, err = run(*words)
    assert code == 2
    assert "give --model" in err
    assert run(*words, "--model", "nano")[0] == 0


def test_options_of_stores_are_refused_for_a_checkpoint(run):
    code, _, err = run("verify", "nano", "--input", "texts.txt")
    assert code == 2
    assert "nano is none" in err


def test_safetensors_have_the_columns_of_the_points_that_are_named(run, store, tmp_path):
    path = tmp_path / "states.safetensors"
    words = ("--safetensors", path, "--column", "resid_post.1", "--json")
    code, out, _ = run("export", store, *words)
    tensors = load_file(path)
    assert code == 0
    assert json.loads(out) == {
        "file": str(path),
        "columns": ["resid_post.1.mean"],
        "bytes": path.stat().st_size,
    }
    assert tensors.keys() == {"resid_post.1.mean", "num_tokens"}
    wanted = open_store(store)["resid_post.1.mean"].numpy()
    np.testing.assert_array_equal(tensors["resid_post.1.mean"], wanted)


def test_npy_is_the_column_as_the_library_reads_it(run, store, tmp_path):
    path = tmp_path / "states.npy"
    code, out, err = run("export", store, "--npy", path, "--column", "resid_post.0.mean")
    assert (code, out) == (0, "")
    assert "1 of the store's columns" in err
    np.testing.assert_array_equal(np.load(path), open_store(store)["resid_post.0.mean"].numpy())


def test_control_vector_is_the_difference_of_the_means(run, store, tmp_path):
    values = {column.name: np.ones((3, 8), np.float16) for column in COLUMNS}
    other = make_text_store(tmp_path / "other", COLUMNS, list("xyz"), values=values).path
    path = tmp_path / "directions.gguf"
    code, _, err = run("export", store, "--gguf", path, "--minus", other)
    (tensor,) = gguf.GGUFReader(path).tensors
    wanted = open_store(store)["resid_post.1.mean"].float32().mean(axis=0) - 1
    assert code == 0
    assert "resid_post.0.mean: left out" in err
    assert tensor.name == "direction.1"
    np.testing.assert_allclose(tensor.data, wanted, rtol=1e-6)


def test_control_vector_of_two_classes_is_the_difference_of_their_means(run, tmp_path, corpus):
    words = ("--points", "resid_post.[0,1]", "--pool", "mean", "--label", "kind")
    stats, path = tmp_path / "stats.safetensors", tmp_path / "directions.gguf"
    assert run("extract", corpus, *words, "--stats", "--out", stats, "--model", "nano")[0] == 0
    code, _, err = run(
        "export", stats, "--gguf", path, "--classes", "x,y", "--column", "resid_post"
    )
    (tensor,) = gguf.GGUFReader(path).tensors
    wanted = phiscope.PointStatistics.load(stats).class_differences("x", "y")
    assert code == 0
    assert "resid_post.0.mean: left out" in err
    np.testing.assert_allclose(tensor.data, wanted["resid_post.1.mean"], rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "one file"),
        (("--npy", "a.npy", "--safetensors", "a.safetensors"), "one file"),
        (("--npy", "a.npy"), "--column of resid_post.0.mean, resid_post.1.mean"),
        (("--gguf", "a.gguf"), "one of --minus and --classes"),
        (("--npy", "a.npy", "--minus", "b"), "other files take neither"),
        (("--gguf", "a.gguf", "--minus", "b", "--classes", "x,y"), "one of --minus"),
        (("--gguf", "a.gguf", "--classes", "x"), "takes two names"),
    ],
)
def test_an_export_that_cannot_be_is_a_usage_error(words, told, run, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("export", store, *words)
    assert (code, out) == (2, "")
    assert told in err
    assert list(tmp_path.iterdir()) == [store]


def test_an_unknown_column_fails_with_those_there_are(run, store, tmp_path):
    words = ("--npy", tmp_path / "a.npy", "--column", "resid_post.2")
    code, _, err = run("export", store, *words)
    assert code == 1
    assert "resid_post.1.mean" in err


def test_a_merge_of_what_is_no_part_fails_by_its_name(run, store, tmp_path):
    code, _, err = run("merge", tmp_path / "out", store)
    assert code == 1
    assert f"{store} is no part" in err


@pytest.mark.parametrize("command", ["view", "export"])
def test_a_folder_that_is_no_store_fails_by_its_name(command, run, tmp_path):
    words = () if command == "view" else ("--npy", tmp_path / "a.npy")
    code, out, err = run(command, tmp_path, *words)
    assert (code, out) == (1, "")
    assert f"{tmp_path} is no store" in err
