import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import phiscope
from phiscope.store import open_store

TEXTS = [f"def function_{number}(): return {number}" for number in range(5)]
POINTS = ("--points", "resid_post.[0,1]")


@pytest.fixture
def corpus(tmp_path):
    """A file of five texts with ids."""
    path = tmp_path / "corpus.jsonl"
    rows = ({"id": f"row-{n}", "body": text} for n, text in enumerate(TEXTS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def extract(run):
    """Extract with the embedded model, in shards of two rows unless words say otherwise."""

    def extract(*words, model="nano", shard_size=2):
        mode = ("--model", model, "--mode", "fp32-cpu")
        return run("extract", *words, "--shard-size", shard_size, *mode)

    return extract


@pytest.fixture
def config_only(folder, tmp_path):
    """A model whose weights are missing, so that it cannot be loaded."""
    copy = shutil.copytree(folder, tmp_path / "config_only")
    (copy / "model.safetensors").unlink()
    return copy


class Interrupting(io.BytesIO):
    """Text lines of which one comes after a Ctrl-C."""

    def __init__(self, data: bytes, line: int) -> None:
        super().__init__(data)
        self._lines_left = line

    def readline(self, *limit):
        self._lines_left -= 1
        if self._lines_left == 0:
            signal.raise_signal(signal.SIGINT)
        return super().readline(*limit)


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_notes(folder):
    """All files of a store, its manifest without what its user called things."""
    files = read_files(folder)
    manifest = json.loads(files.pop("manifest.json"))
    return files, {key: value for key, value in manifest.items() if key != "notes"}


def test_the_store_is_the_one_that_the_library_writes(extract, corpus, tmp_path):
    words = ("--pool", "mean,last", "--text", "body", "--dtype", "float32")
    code, out, err = extract(corpus, *POINTS, *words, "--out", tmp_path / "ours")
    assert (code, out) == (0, "")
    assert f"{tmp_path / 'ours'}: finished, 5 rows of 5 texts" in err
    phiscope.load("nano", mode="fp32-cpu").extract(
        corpus,
        tmp_path / "theirs",
        points="resid_post.[0,1]",
        pool=["mean", "last"],
        fields=phiscope.Fields(text="body"),
        dtype="float32",
        shard_size=2,
    )
    assert without_notes(tmp_path / "ours") == without_notes(tmp_path / "theirs")


def test_the_manifest_has_the_names_as_the_user_wrote_them(extract, corpus, tmp_path):
    extract(corpus, *POINTS, "--out", tmp_path / "s")
    notes = open_store(tmp_path / "s").manifest["notes"]
    assert notes == {"model": "nano", "input": str(corpus)}


def test_json_on_stdout_is_the_report(extract, corpus, tmp_path):
    code, out, err = extract(corpus, *POINTS, "--out", tmp_path / "s", "--json")
    report, store = json.loads(out), open_store(tmp_path / "s")
    assert code == 0
    assert report["is_finished"]
    assert report["out"] == str(tmp_path / "s")
    assert (report["num_rows"], report["num_tokens"]) == (len(store), store.num_tokens)
    assert "5 texts" in err


def test_verified_rows_are_told_and_recorded(extract, corpus, tmp_path):
    words = ("--pool", "mean", "--out", tmp_path / "s", "--verify", 3, "--json")
    code, out, err = extract(corpus, *POINTS, *words)
    verification = open_store(tmp_path / "s").manifest["verification"]
    assert code == 0
    assert "3 rows verified" in err
    assert json.loads(out)["verification"] == verification
    assert verification["rows"] == 3


def test_rows_that_are_tokens_can_be_chosen(extract, corpus, tmp_path):
    extract(corpus, *POINTS, "--tokens", "last:2", "--out", tmp_path / "s")
    assert len(open_store(tmp_path / "s")) == 2 * len(TEXTS)


def test_blocks_above_the_points_are_not_loaded(extract, folder, corpus, tmp_path, recwarn):
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.mlp.fc1.bias"][:] = torch.nan
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    points = ("--points", "resid_post.0")
    code, _, err = extract(corpus, *points, "--out", tmp_path / "s", model=copy)
    assert code == 0
    assert "NaN" not in err
    assert not recwarn.list


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--points", "resid_post.2"), "indices are 0 to 1"),
        (("--points", "attn_probs.0"), "whole map"),
        (("--points", "logits"), "top_k"),
        (("--points", "z.0", "--top-k", "3"), "logits"),
        (("--pool", "mean,none"), "no pooling 'none'"),
        (("--tokens", "some"), "no selection 'some'"),
        (("--tokens", "completion"), "--prompt and --completion"),
        (("--tokens", "span"), "--span"),
        (("--tokens", "text:x", "--ids", "body"), "token ids"),
        (("--text", "nothing"), "no column 'nothing'"),
        (("--prompt", "body"), "go together"),
        (("--format", "parquet"), "cannot read"),
        (("--window", "129"), "context of 128"),
        (("--overflow", "window", "--stride", "129"), "would skip"),
        (("--stride", "3"), "overflow"),
        (("--shard", "2/2"), "0/4"),
        (("--shard", "0/2", "--verify", "1"), "phiscope verify"),
        (("--stats", "--verify", "1"), "leave out --verify"),
        (("--stats", "--dtype", "float16"), "leave out --dtype"),
        (("--dtype", "float8"), "float8"),
        (("--actors", "2"), "--ray"),
        (("--ray", "--shard", "0/2"), "leave --shard out"),
        (("--ray", "auto", "--gpus-per-actor", "1.5"), "fraction"),
        (("--ray", "auto", "--gpus-per-actor", "inf"), "inf"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(
    words, told, extract, corpus, config_only, tmp_path
):
    words = words if "--points" in words else (*words, *POINTS)
    code, out, err = extract(corpus, *words, "--out", tmp_path / "s", model=config_only)
    assert (code, out) == (2, "")
    assert told in err
    assert not (tmp_path / "s").exists()


def test_plan_says_what_extract_will_come_to_and_writes_nothing(run, extract, corpus, tmp_path):
    words = (*POINTS, "--pool", "mean", "--shard-size", 2, "--model", "nano", "--mode", "fp32-cpu")
    words = (corpus, *words, "--seconds", 0.01)
    code, out, err = run("plan", *words, "--json")
    plan = json.loads(out)
    assert (code, err) == (0, "")
    assert list(tmp_path.iterdir()) == [corpus]
    _, out, _ = extract(corpus, *POINTS, "--pool", "mean", "--out", tmp_path / "s", "--json")
    report = json.loads(out)
    for name in ("num_input_rows", "num_bad_rows", "num_tokens"):
        assert plan[name] == report[name]
    assert plan["num_shards"] == 3
    code, out, _ = run("plan", *words)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "rows", "tokens", "shards", "time", "memory", "disk",
    ]  # fmt: skip


def test_plan_of_what_can_be_read_once_is_a_usage_error(run, type_in):
    type_in(b"text\n")
    code, _, err = run("plan", "-", *POINTS, "--model", "nano")
    assert code == 2
    assert "read only once" in err


def test_an_absent_input_is_a_usage_error(extract, tmp_path):
    code, _, err = extract("nowhere.txt", *POINTS, "--out", tmp_path / "s")
    assert code == 2
    assert "cannot read 'nowhere.txt'" in err


def test_a_folder_of_other_things_is_left_alone(extract, corpus, config_only, tmp_path):
    code, _, err = extract(corpus, *POINTS, "--out", tmp_path, model=config_only)
    assert code == 1
    assert "no store and not empty" in err


def test_bad_rows_are_named_and_the_others_served(extract, tmp_path):
    path = tmp_path / "corpus.jsonl"
    lines = ['{"id": "a", "text": "x"}', '{"id": "b\\u001b[0m", "text": ""}', "{", '{"text": "x"}']
    path.write_text("\n".join(lines) + "\n")
    code, _, err = extract(path, *POINTS, "--pool", "mean", "--out", tmp_path / "s")
    assert code == 3
    assert "row 1 ('b\\x1b[0m'): empty" in err
    assert "row 2: not sound JSON" in err
    assert "2 bad rows" in err
    assert open_store(tmp_path / "s").ids == ["a", "3"]
    assert extract(path, *POINTS, "--pool", "mean", "--out", tmp_path / "s")[0] == 3  # again


def test_clamped_values_are_told_with_the_remedy(extract, folder, corpus, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= 1e6
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    words = (corpus, "--points", "embeddings")
    code, out, err = extract(*words, "--out", tmp_path / "half", "--json", model=copy)
    assert code == 0
    assert f"{json.loads(out)['num_clamped']:,} values were beyond float16" in err
    assert "--dtype float32" in err
    _, _, err = extract(*words, "--out", tmp_path / "s", "--dtype", "float32", model=copy)
    assert "were clamped" not in err


def test_parts_are_merged_into_the_store_of_one_job(run, extract, corpus, tmp_path):
    for part in ("0/2", "1/2"):
        words = ("--shard", part, "--out", tmp_path / part[0])
        code, _, err = extract(corpus, *POINTS, *words)
        assert code == 0
        assert f"part {part} is done" in err
    extract(corpus, *POINTS, "--out", tmp_path / "whole")
    code, out, err = run("merge", tmp_path / "merged", tmp_path / "0", tmp_path / "1", "--json")
    assert code == 0
    assert json.loads(out)["num_input_rows"] == 5
    assert "rows of 5 texts" in err
    assert read_files(tmp_path / "merged") == read_files(tmp_path / "whole")


def test_statistics_are_those_of_the_states_and_parts_of_them_are_merged(
    run, extract, corpus, tmp_path
):
    words = (*POINTS, "--pool", "mean", "--dtype", "float32")
    extract(corpus, *words, "--out", tmp_path / "s")
    for part in ("0/2", "1/2"):
        out = ("--out", tmp_path / part[0])
        code, out, err = extract(corpus, *words, "--stats", "--shard", part, *out, "--json")
        assert code == 0
        assert json.loads(out)["is_finished"]
        assert "statistics of" in err
    parts = (tmp_path / "0", tmp_path / "1")
    code, out, _ = run("merge", tmp_path / "merged", *parts, "--json")
    assert code == 0
    assert json.loads(out)["num_rows"] == len(TEXTS)
    statistics = phiscope.PointStatistics.load(tmp_path / "merged")
    for name, moments in statistics.columns.items():
        states = open_store(tmp_path / "s")[name].numpy().astype(np.float64)
        np.testing.assert_allclose(moments.mean, states.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(moments.covariance, np.cov(states.T), atol=1e-6)
    assert run("merge", tmp_path / "merged", *parts)[0] == 2


def test_an_interrupted_count_goes_on_with_the_command_that_it_prints(
    run, extract, tmp_path, monkeypatch
):
    data = "\n".join(TEXTS).encode()
    words = ("-", *POINTS, "--pool", "mean", "--stats", "--out")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Interrupting(data, 4)))
    code, _, err = extract(*words, tmp_path / "a")
    assert code == 130
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run(*shlex.split(err.splitlines()[-1])[1:])[0] == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    extract(*words, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_same_words_again_change_nothing(extract, corpus, tmp_path):
    words = (corpus, *POINTS, "--out", tmp_path / "s")
    extract(*words)
    before = read_files(tmp_path / "s")
    assert extract(*words)[0] == 0
    assert read_files(tmp_path / "s") == before
    code, _, err = extract(*words, "--no-resume")
    assert code == 2
    assert "--no-resume" in err


def test_a_changed_option_is_refused_by_its_name(extract, corpus, tmp_path):
    extract(corpus, *POINTS, "--out", tmp_path / "s")
    code, _, err = extract(corpus, *POINTS, "--out", tmp_path / "s", "--tokens", "last:1")
    assert code == 1
    assert 'job.reading.tokens: the store has "all", this job has "last:1"' in err


def test_ctrl_c_finishes_the_shard_and_the_command_it_prints_goes_on(
    run, extract, tmp_path, monkeypatch
):
    data = "\n".join(TEXTS).encode()
    words = ("-", *POINTS, "--out", tmp_path / "a store", "--no-resume")
    interrupted = io.TextIOWrapper(Interrupting(data, 4))
    monkeypatch.setattr(sys, "stdin", interrupted)
    code, out, err = extract(*words)
    command = shlex.split(err.splitlines()[-1])
    assert (code, out) == (130, "")
    assert "not finished, " in err
    assert "same rows on stdin" in err
    assert (command[:2], "--no-resume" in command) == (["phiscope", "extract"], False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run(*command[1:])[0] == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    extract("-", *POINTS, "--out", tmp_path / "at once")
    assert read_files(tmp_path / "a store") == read_files(tmp_path / "at once")


def test_an_interrupted_part_is_not_called_done(extract, tmp_path, monkeypatch):
    lines = Interrupting("\n".join(TEXTS).encode(), 2)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines))
    code, _, err = extract("-", *POINTS, "--out", tmp_path / "s", "--shard", "0/2")
    assert code == 130
    assert "is done" not in err
    assert "--shard 0/2" in err.splitlines()[-1]


def test_names_beyond_ascii_serve_in_an_ascii_locale(tmp_path):
    corpus, out = tmp_path / "caf\xe9.jsonl", tmp_path / "\xe9tats"
    corpus.write_text('{"na\xefve": "un caf\xe9"}\n{"na\xefve": ""}\n', encoding="utf-8")
    words = ("--points", "embeddings", "--text", "na\xefve", "--model", "nano", "--out", out)
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "40"}
    done = subprocess.run(
        [sys.executable, "-m", "phiscope", "extract", corpus, *words],
        env={**os.environ, **ascii_only},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.isascii()
    assert b"Traceback" not in done.stderr
    assert open_store(out).manifest["notes"] == {"model": "nano", "input": str(corpus)}


def test_names_in_the_help_are_those_of_the_library():
    from typing import get_args

    from phiscope.cli.inputs import FORMAT_NAMES
    from phiscope.cli.job import KEPT_DTYPES, OVERFLOW_NAMES
    from phiscope.extraction.inputs import FORMATS
    from phiscope.extraction.options import DTYPES, Overflow

    assert FORMAT_NAMES == FORMATS
    assert tuple(DTYPES) == KEPT_DTYPES
    assert get_args(Overflow) == OVERFLOW_NAMES
