"""Text lines, JSONL, CSV and TSV, read line by line as UTF-8 from files, pipes and stdin.

Lines end with LF or CRLF, a mark at the beginning (BOM) is left out, and a line feed at the end
begins no row. A blank line is a bad row, so that rows have the numbers of their lines.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import BinaryIO

from phiscope.errors import InputError
from phiscope.extraction.inputs.fields import TEXT
from phiscope.extraction.inputs.records import parse_json
from phiscope.extraction.inputs.rows import MAX_ROW_BYTES, BadRowError
from phiscope.extraction.inputs.sources import Reader, Unread, reading

BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_TOO_LONG = f"longer than {MAX_ROW_BYTES:,} bytes"


@dataclass(frozen=True)
class Stream:
    """Bytes under a name; what is not repeatable goes on where it was when opened again."""

    name: str
    open: Callable[[], AbstractContextManager[BinaryIO]]
    repeatable: bool = True


def read_text_lines(stream: Stream) -> Reader:
    """Each line is a text."""
    return _make_reader(stream, partial(_parse_lines, stream, _parse_text_line))


def read_jsonl(stream: Stream) -> Reader:
    """Each line is a JSON object with columns, a string, or a list of token ids."""
    return _make_reader(stream, partial(_parse_lines, stream, _parse_json_line))


def read_csv(stream: Stream) -> Reader:
    """A header line and records with commas; quoted cells may hold line feeds."""
    return _make_reader(stream, partial(_parse_records, stream, ","))


def read_tsv(stream: Stream) -> Reader:
    """A header line and records with tabs, quoted as in CSV."""
    return _make_reader(stream, partial(_parse_records, stream, "\t"))


def read_lines(stream: Stream, limit: int = MAX_ROW_BYTES) -> Iterator[bytes]:
    """The lines with their ends; of one longer than `limit` bytes the first `limit + 1`."""
    with reading(stream.name), stream.open() as file:
        mark = BOM
        while line := file.readline(limit + 1):
            if mark and line.startswith(_UTF_16):
                raise InputError(f"{stream.name} is UTF-16; convert it to UTF-8, as iconv does")
            if len(line) > limit:
                _skip_line(file, line, limit)
                yield line
            else:
                yield line.removeprefix(mark)
            mark = b""


def _make_reader(stream: Stream, parse: Callable[[], Iterator[Unread]]) -> Reader:
    def open_at(start: int, _: Sequence[str]) -> Iterator[Unread]:
        return islice(parse(), start, None)

    def count() -> int:
        return sum(1 for _ in parse())

    repeatable = stream.repeatable
    return Reader(open=open_at, count=count if repeatable else None, repeatable=repeatable)


def _skip_line(file: BinaryIO, line: bytes, limit: int) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(limit)


def _parse_lines(stream: Stream, parse: Callable[[bytes], object]) -> Iterator[Unread]:
    for line in read_lines(stream):
        yield partial(parse, line)


def _parse_text_line(line: bytes) -> object:
    return {TEXT: _trim(line)}


def _parse_json_line(line: bytes) -> object:
    data = _trim(line)
    if not data.strip():
        raise BadRowError("empty")
    return parse_json(data)


def _trim(line: bytes) -> bytes:
    if len(line) > MAX_ROW_BYTES:
        raise BadRowError(_TOO_LONG)
    return line.removesuffix(b"\n").removesuffix(b"\r")


class _RecordLines:
    """Lines as the csv module takes them; too many bytes for one record are an error.

    Bytes that are not UTF-8 become lone surrogates, which `_restore` makes bytes again.
    """

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._left = MAX_ROW_BYTES

    def __iter__(self) -> "_RecordLines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._left -= len(line)
        if self._left < 0:
            raise csv.Error(_TOO_LONG)
        return line.decode(errors="surrogateescape")

    def begin_record(self) -> None:
        self._left = MAX_ROW_BYTES


def _parse_records(stream: Stream, delimiter: str) -> Iterator[Unread]:
    lines = _RecordLines(read_lines(stream))
    records = csv.reader(lines, delimiter=delimiter, strict=True)
    header = _check_header(stream.name, _next_record(records))
    lines.begin_record()
    while (record := _next_record(records)) is not None:
        yield partial(_parse_record, header, record)
        lines.begin_record()


def _next_record(records: Iterator[list[str]]) -> list[str] | csv.Error | None:
    """A record, or why it is none; its size is limited by `_RecordLines`, not by its cells."""
    before = csv.field_size_limit(MAX_ROW_BYTES)
    try:
        return next(records, None)
    except csv.Error as error:
        return error
    finally:
        csv.field_size_limit(before)


def _check_header(name: str, header: list[str] | csv.Error | None) -> list[str]:
    if not isinstance(header, list) or not header:
        raise InputError(f"{name} has no header line, which names the columns: {header or 'empty'}")
    if len(set(header)) < len(header):
        twice, _ = Counter(header).most_common(1)[0]
        raise InputError(f"{name} has two columns {twice!r}; rename one of them")
    return header


def _parse_record(header: list[str], record: list[str] | csv.Error) -> object:
    if isinstance(record, csv.Error):
        raise BadRowError(f"not sound CSV: {record}")
    if not record:
        raise BadRowError("empty")
    if len(record) != len(header):
        raise BadRowError(f"{len(record)} cells, while the header names {len(header)} columns")
    return dict(zip(header, map(_restore, record), strict=True))


def _restore(cell: str) -> str | bytes:
    try:
        cell.encode()
    except UnicodeEncodeError:
        return cell.encode(errors="surrogateescape")
    return cell
