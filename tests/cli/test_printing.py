import contextlib
import io
import json
import sys

import pytest

from phiscope.cli import printing


def print_in_latin(job):
    """What a job prints to a stdout that knows 256 characters."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    with contextlib.redirect_stdout(stream):
        job()
    return stream.buffer.getvalue()


def test_a_table_sets_words_left_and_numbers_right():
    lines = printing.format_table(("point", "mean"), [("embeddings", "1.50"), ("q.0", "10.25")])
    assert lines == ["point        mean", "embeddings   1.50", "q.0         10.25"]


def test_a_character_that_stdout_lacks_is_escaped():
    printed = print_in_latin(lambda: printing.emit("caf\xe9 \u4e16"))
    assert printed == b"caf\xe9 \\u4e16\n"


def test_json_stays_json_whatever_the_encoding_of_stdout():
    value = {"text": "caf\xe9 \u4e16 \U0001f600"}
    assert json.loads(print_in_latin(lambda: printing.emit_json(value))) == value


def test_json_has_null_where_a_number_is_none(capsys):
    printing.emit_json({"norms": (1.5, float("nan"), float("-inf"))})
    assert capsys.readouterr().out == '{"norms": [1.5, null, null]}\n'


def test_words_go_nowhere_when_stderr_is_closed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    printing.note("loading")
    assert capsys.readouterr().out == ""


def test_long_facts_are_folded_to_forty_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    printing.emit_facts([("features", "avx2 fma " * 9), ("cpu", "one")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 40
    assert "".join(lines).count("avx2") == 9


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (5_559_367_680, "5.6 GB"), (2e12, "2.0 TB")],
)
def test_sizes_have_the_unit_that_fits(size, shown):
    assert printing.show_bytes(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (99.4, "99 s"), (150, "2.5 min"), (11160, "3.1 h")]
)
def test_times_have_the_unit_that_fits(seconds, shown):
    assert printing.show_time(seconds) == shown
