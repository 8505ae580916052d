"""Rows of text for the commands that take many: from arguments, a file, or stdin.

A row that cannot be served is kept with its fault, so that results stay aligned with the input and
one bad row among a million does not end the job.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from phiscope.cli.arguments import text_argument
from phiscope.cli.exits import BAD_ROWS, OK, UsageError
from phiscope.cli.printing import emit_json, note, shows_progress

if TYPE_CHECKING:
    from phiscope.api import Phi


@dataclass(frozen=True)
class Row:
    """One text and its number, or what is wrong with it."""

    index: int
    text: str
    fault: str | None = None


def add_row_arguments(parser: ArgumentParser) -> None:
    """Texts as arguments, or one a line from a file."""
    parser.add_argument("texts", nargs="*", type=text_argument, metavar="TEXT", help="a text")
    parser.add_argument(
        "--file", metavar="FILE", help="read one text a line from here instead (-: stdin)"
    )


def read_rows(arguments: Namespace) -> list[Row]:
    """Read all rows: the arguments, or else the lines of --file, or else those of stdin."""
    if arguments.texts and arguments.file:
        raise UsageError("texts were given both as arguments and by --file; give one of them")
    if arguments.texts:
        return [Row(index, text) for index, text in enumerate(arguments.texts)]
    if arguments.file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("no text: give one as an argument, by --file, or on stdin")
    rows = [_read_row(index, line) for index, line in enumerate(_read_lines(arguments.file or "-"))]
    if not rows:
        raise UsageError(f"{arguments.file or 'stdin'} holds no lines, so there is no text")
    return rows


def check_rows(rows: Sequence[Row], phi: "Phi") -> list[Row]:
    """Mark the rows that have no tokens, or more than the model's context."""
    limit = phi.config.max_position_embeddings
    checked = []
    for row in rows:
        length = len(phi.tokenizer.encode(row.text)) if row.fault is None else None
        checked.append(_check_length(row, length, limit))
    return checked


def in_chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Give the rows a few at a time, with a progress bar where somebody looks and it takes long."""
    from tqdm import tqdm

    with tqdm(total=len(rows), unit="text", delay=2, disable=not shows_progress()) as bar:
        for begin in range(0, len(rows), _CHUNK):
            chunk = rows[begin : begin + _CHUNK]
            yield chunk
            bar.update(len(chunk))


def report_bad_rows(rows: Sequence[Row]) -> int:
    """Name the bad rows on stderr, the first twenty of them, and give the exit code."""
    bad = [row for row in rows if row.fault is not None]
    for row in bad[:_MAX_NAMED]:
        note(f"phiscope: row {row.index}: {row.fault}")
    if bad:
        note(f"phiscope: {len(bad)} of {len(rows)} rows were bad and have no result")
    return BAD_ROWS if bad else OK


def report_file(
    out: str, shapes: Mapping[str, Sequence[int]], rows: Sequence[Row], *, as_json: bool
) -> None:
    """Say what was written: the shape of every array, and with JSON the bad rows."""
    if as_json:
        errors = [{"index": row.index, "error": row.fault} for row in rows if row.fault]
        found = {name: list(shape) for name, shape in shapes.items()}
        emit_json({"file": out, "shapes": found, "errors": errors})
        return
    first = [f"{name} {tuple(shape)}" for name, shape in list(shapes.items())[:_MAX_NAMED]]
    note(f"{out}: {', '.join(first)}{' ...' if len(shapes) > _MAX_NAMED else ''}")


_MAX_NAMED = 20
_CHUNK = 16


def _read_lines(file: str) -> list[bytes]:
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _read_row(index: int, line: bytes) -> Row:
    try:
        return Row(index, line.removesuffix(b"\r").decode())
    except UnicodeDecodeError as error:
        return Row(index, "", f"not valid UTF-8 at byte {error.start}")


def _check_length(row: Row, length: int | None, limit: int) -> Row:
    if length == 0:
        return replace(row, fault="empty")
    if length is not None and length > limit:
        return replace(row, fault=f"{length} tokens exceed the context of {limit}")
    return row
