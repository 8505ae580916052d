import json

import pytest

from phiscope.statistics.point_statistics import PointStatistics
from phiscope.training.synthetic import LABELS, SyntheticOptions, generate

COLUMNS = ["id", "text", "kind", "template", "split", *LABELS]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_writes_the_samples_with_the_same_columns_in_every_row(run, tmp_path):
    out = tmp_path / "data.jsonl"
    code, printed, err = run("synthesize", "--out", out, "--count", 60, "--seed", 3)
    rows = read(out)
    samples = list(generate(SyntheticOptions(seed=3), 0, 60))
    assert code == 0
    assert all(list(row) == COLUMNS for row in rows)
    assert [row["text"] for row in rows] == [sample.text for sample in samples]
    for row, sample in zip(rows, samples, strict=True):
        assert {label: row[label] for label in LABELS if row[label] is not None} == sample.labels
    assert printed.splitlines()[0].split() == ["kind", "label", "samples", "classes"]
    assert f"{out}: 60 samples" in err
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_json_counts_what_the_file_has(run, tmp_path):
    out = tmp_path / "data.jsonl"
    words = ("--count", 40, "--mix", "occupation=1,junk=1", "--split", "heldout", "--json")
    code, printed, _ = run("synthesize", "--out", out, "--strength", 1, *words)
    report = json.loads(printed)
    rows = read(out)
    assert code == 0
    assert report["samples"] == len(rows) == 40
    for kind in ("occupation", "junk"):
        assert report["counts"][kind]["split"] == {
            "heldout": sum(row["kind"] == kind for row in rows)
        }
    assert {row["split"] for row in rows} == {"heldout"}


def test_statistics_by_label_are_extracted_from_what_it_writes(run, run_model, tmp_path):
    data, out = tmp_path / "data.jsonl", tmp_path / "truth.safetensors"
    run("synthesize", "--out", data, "--count", 30, "--mix", "fact=2,qa=1")
    words = ("--points", "resid_post.0", "--pool", "mean", "--overflow", "truncate")
    code, _, err = run_model("extract", data, *words, "--stats", "--label", "truth", "--out", out)
    (moments,) = PointStatistics.load(out).columns.values()
    assert (code, moments.count) == (0, 30), err
    assert moments.class_means.keys() == {"false", "true"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mix", "poem=1"), "mix has no kind 'poem'"),
        (("--mix", "story"), "'story' is no kind with a weight"),
        (("--mix", "story=-1"), "mix of 'story'"),
        (("--strength", "2"), "strength must lie"),
        (("--strength", "nan"), "strength must lie"),
        (("--heldout-share", "0"), "heldout_share must lie"),
        (("--split", "test"), "--split"),
        (("--count", "0"), "--count"),
        (("--seed", "-1"), "--seed"),
        (("--out", "data.txt"), "must end in .jsonl"),
    ],
)
def test_what_cannot_be_is_a_usage_error_and_writes_nothing(words, message, run, tmp_path):
    out = tmp_path / "data.jsonl"
    code, printed, err = run("synthesize", "--out", out, "--count", 5, *words)
    assert code == 2
    assert printed == ""
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_splits_and_kinds_in_the_help_are_those_of_the_library(run):
    from phiscope.cli.synthesis import SPLIT_NAMES
    from phiscope.training.synthetic import KINDS
    from phiscope.training.synthetic.options import SPLITS

    _, page, _ = run("synthesize", "--help")
    assert SPLIT_NAMES == SPLITS
    assert f"Kinds: {', '.join(KINDS)}." in page
