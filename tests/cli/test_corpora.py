import json
import os
import subprocess
import sys

import pytest

from phiscope.errors import MissingExtraError


@pytest.fixture
def data(tmp_path):
    rows = [{"page": f"document {number}: " + f"word{number} " * 40} for number in range(30)]
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    return path


@pytest.fixture
def build(run, data, tmp_path, folder):
    def build(*words):
        out = ("--out", tmp_path / "corpus", "--tokenizer", folder)
        return run("corpus", "build", data, *out, *words)

    return build


def test_build_writes_a_corpus_that_info_tells_of(build, run, tmp_path):
    words = ("--text-field", "page", "--heldout", 0.3, "--shard-tokens", 2000)
    code, out, _ = build(*words, "--json")
    built = json.loads(out)
    assert code == 0
    assert built["drops"]["duplicate"] == 1
    assert sum(counts["num_documents"] for counts in built["counts"].values()) == 30
    code, out, err = run("corpus", "info", tmp_path / "corpus", "--verify", "--json")
    assert code == 0
    assert json.loads(out) == built
    assert "every file is as it was written" in err


def test_info_is_for_reading(build, run, tmp_path):
    build()
    code, out, err = run("corpus", "info", tmp_path / "corpus")
    assert (code, err) == (0, "")
    assert "30 documents" in out
    assert "1 duplicate" in out
    assert "uint16, 257 tokens" in out


def test_building_again_with_other_options_fails_by_the_difference(build):
    assert build()[0] == 0
    assert build()[0] == 0
    code, out, err = build("--near-duplicates", "off")
    assert (code, out) == (1, "")
    assert "options.near_duplicates is 0.8 there and None here" in err


def test_bad_rows_are_named_and_counted(build, data):
    data.write_text('{"page": "a text"}\n{"page":\n{"page": "\\ud800"}\n')
    code, _, err = build()
    assert code == 3
    assert "row 1: not sound JSON" in err
    assert "2 bad rows are no documents" in err


def test_a_damaged_corpus_fails_by_the_file(build, run, tmp_path):
    build()
    path = tmp_path / "corpus" / "tokens-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    code, out, err = run("corpus", "info", tmp_path / "corpus")
    assert (code, out) == (1, "")
    assert str(path) in err


@pytest.mark.parametrize(
    "words",
    [
        ("--text-field", "absent"),
        ("--near-duplicates", "some"),
        ("--near-duplicates", "3"),
        ("--heldout", "1"),
        ("--shard-tokens", "0"),
    ],
)
def test_values_that_cannot_be_are_usage_errors(words, build, tmp_path):
    code, out, _ = build(*words)
    assert (code, out) == (2, "")
    assert not (tmp_path / "corpus").exists()


def test_corpus_alone_is_a_usage_error(run):
    code, _, err = run("corpus")
    assert code == 2
    assert "usage: phiscope corpus COMMAND" in err


def test_without_datasketch_the_extra_is_named(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    code, _, err = build()
    assert code == 1
    assert str(MissingExtraError("train")) in err
    assert build("--near-duplicates", "off")[0] == 0


@pytest.mark.parametrize("name", ["build", "info"])
def test_help_of_both_is_printed_without_torch_and_fits_forty_columns(name):
    code = (
        "import sys; from phiscope.cli import main\n"
        f"try: main(['corpus', {name!r}, '--help'])\n"
        "except SystemExit: print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    )
    environment = {**os.environ, "COLUMNS": "40"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    options = done.stdout[done.stdout.index("options:") : done.stdout.rindex("  --")]
    assert done.stdout.splitlines()[-1] == "False False"
    assert max(map(len, options.splitlines())) <= 40


def test_choices_in_the_help_are_those_of_the_library():
    from phiscope.cli.corpora import NUL_NAMES
    from phiscope.training.corpora.options import NUL_TREATMENTS

    assert NUL_NAMES == NUL_TREATMENTS
