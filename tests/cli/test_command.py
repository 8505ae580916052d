import subprocess
import sys
import time

import pytest

from phiscope.cli import COMMANDS, main

NAMES = [command.name for command in COMMANDS]
ASK_EVERY_HELP = """
import sys
from phiscope.cli import COMMANDS, main
names = [[command.name] for command in COMMANDS]
names += [["filter", "fit"], ["filter", "score"]]
for words in (["--help"], ["--version"], *([*name, "--help"] for name in names)):
    try:
        main(words)
    except SystemExit as exit:
        assert exit.code == 0, words
print(sorted({"torch", "numpy", "tokenizers", "transformers", "sklearn"} & set(sys.modules)))
"""


def test_every_help_is_printed_without_importing_torch():
    done = subprocess.run(
        [sys.executable, "-c", ASK_EVERY_HELP], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"usage: phiscope {name}" in done.stdout for name in NAMES)


def test_help_comes_within_three_tenths_of_a_second():
    def seconds():
        begin = time.perf_counter()
        command = [sys.executable, "-m", "phiscope", "--help"]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - begin

    assert min(seconds() for _ in range(5)) < 0.3


@pytest.mark.parametrize("name", NAMES)
def test_help_fits_forty_columns(name, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = run(name, "--help")
    options = out[: out.find("\n\n", out.rfind("  --"))]
    assert code == 0
    assert max(len(line) for line in options.splitlines() if line.startswith(" " * 12)) <= 40


def test_no_command_prints_the_help_and_is_a_usage_error(run):
    code, out, _ = run()
    assert code == 2
    assert all(name in out for name in NAMES)


@pytest.mark.parametrize(
    "words",
    [
        ("nothing",),
        ("generate",),
        ("generate", "a", "--top-k", "0"),
        ("generate", "a", "--mode", "fast"),
        ("generate", "a", "--max-new", "3"),  # no abbreviations: they break when options come
        ("states", "a", "--layers", "x"),
        ("train", "--preset", "huge", "--out", "x"),
    ],
)
def test_words_that_do_not_parse_are_a_usage_error_without_output(words, run):
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    assert "usage: phiscope" in err


def test_every_command_takes_json():
    for name in NAMES:
        with pytest.raises(SystemExit) as exit:
            main([name, "--json", "--help"])
        assert exit.value.code == 0


def test_modes_and_poolings_in_the_help_are_those_of_the_library():
    from phiscope.activations.pooling import REDUCERS
    from phiscope.cli.arguments import MODE_NAMES, POOLING_NAMES
    from phiscope.runtime import MODES

    assert ("auto", *MODES) == MODE_NAMES
    assert tuple(REDUCERS) == POOLING_NAMES


def test_layouts_and_dtypes_in_the_help_are_those_of_the_library():
    from phiscope.checkpoint.layouts import LAYOUTS
    from phiscope.cli.checkpoints import DTYPE_NAMES, LAYOUT_NAMES
    from phiscope.config import DTYPES

    assert tuple(LAYOUTS) == LAYOUT_NAMES
    assert DTYPES == DTYPE_NAMES


def test_presets_in_the_help_are_those_of_the_library():
    from phiscope.cli.training import PRESET_NAMES
    from phiscope.training.options import PRESETS

    assert tuple(PRESETS) == PRESET_NAMES


def test_formats_in_the_help_are_those_of_the_library():
    from phiscope.cli.checkpoints import FORMAT_NAMES
    from phiscope.config import QUANTIZATIONS

    assert FORMAT_NAMES == QUANTIZATIONS
