"""What commands print: data on stdout, words on stderr, tables and JSON."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, TextIO


def emit(text: str) -> None:
    """Write a line of data to stdout."""
    _write(sys.stdout, text + "\n")


def emit_piece(text: str) -> None:
    """Write a piece of a stream to stdout, for its reader to see at once."""
    _write(sys.stdout, text)
    sys.stdout.flush()


def emit_json(value: Any) -> None:
    """Write one JSON document on one line; a number that JSON does not have becomes null."""
    is_ascii = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    emit(json.dumps(_without_nan(value), ensure_ascii=is_ascii))


def note(text: str) -> None:
    """Write words to stderr, if there is one."""
    if sys.stderr is not None:
        _write(sys.stderr, text + "\n")
        sys.stderr.flush()


def emit_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table: columns as wide as their widest cell, numbers to the right."""
    for line in format_table(header, list(rows)):
        emit(line)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a table as lines; a column of numbers is set to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(map(_is_number, column[1:])) for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in (header, *rows)
    ]


def emit_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Write names and values, one a line, long values folded to the terminal's width."""
    shown = [(name, str(value)) for name, value in facts]
    width = max((len(name) for name, _ in shown), default=0) + 2
    for name, value in shown:
        for number, line in enumerate(_fold(value, screen_width() - width)):
            emit((name if number == 0 else "").ljust(width) + line)


def screen_width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def shows_progress() -> bool:
    """Whether progress bars have somebody to look at them."""
    return sys.stderr is not None and sys.stderr.isatty()


def show_count(count: int) -> str:
    """A count with thousands apart: 2,779,683,840."""
    return f"{count:,}"


def show_bytes(count: int) -> str:
    """A size in the unit that fits it: 5.6 GB."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.1f} {unit}"
    return f"{count} B"


def show_time(seconds: float) -> str:
    """A time in the unit that fits it: 40 s, 2.5 min, 3.1 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _write(stream: TextIO, text: str) -> None:
    """Write; a character that the stream's encoding lacks is escaped and not an error."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _fold(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), break_on_hyphens=False) or [""]


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").lstrip("-").isdigit() or cell in {"", "-"}


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
