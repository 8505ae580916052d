"""What is said when a corpus was read: bad rows by name, and how to go on."""

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from phiscope.cli.exits import BAD_ROWS, OK
from phiscope.cli.printing import note, show_count

_MAX_NAMED = 5
_MAX_NAME = 60


def report_bad_rows(path: Path) -> int:
    """Name the first bad rows that a file of errors has, and give the exit code."""
    count = 0
    for count, entry in enumerate(_read_bad_rows(path), start=1):
        if count <= _MAX_NAMED:
            note(f"phiscope: row {_name_row(entry)}: {entry['error']}")
    if count:
        note(f"phiscope: {show_count(count)} bad rows have no states; all of them are in {path}")
    return BAD_ROWS if count else OK


def tell_how_to_resume(arguments: Namespace) -> None:
    """Print the command that goes on with an interrupted job."""
    words = [word for word in arguments.words if word != "--no-resume"]
    is_module = Path(sys.argv[0]).parts[-2:] == ("phiscope", "__main__.py")
    program = [sys.executable, "-m", "phiscope"] if is_module else ["phiscope"]
    hint = ", with the same rows on stdin" if arguments.input == "-" else ""
    note(f"phiscope: the shards so far are kept; to go on{hint}:\n{shlex.join([*program, *words])}")


def is_part_done(out: Path, part: int, count: int) -> bool:
    """Whether the folder has every shard of a part."""
    from phiscope.store.journal import read_journal

    entries = read_journal(out)
    if entries.num_shards is None:
        return False
    return all(number in entries.records for number in range(part, entries.num_shards, count))


def _name_row(entry: Mapping[str, Any]) -> str:
    """The row's number, and its name where that is another."""
    index, name = str(entry["index"]), repr(entry["id"])  # which escapes what is not printable
    return index if name == repr(index) else f"{index} ({name[:_MAX_NAME]})"


def _read_bad_rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            yield from (entry for entry in map(json.loads, lines) if "error" in entry)
