import csv
import io
import json
from contextlib import nullcontext

import pytest

from phiscope.errors import InputError
from phiscope.extraction.inputs import Fields, open_source
from phiscope.extraction.inputs.rows import MAX_ROW_BYTES
from phiscope.extraction.inputs.streams import Stream, read_lines


@pytest.fixture
def read(tmp_path):
    """Write bytes to a file of that name, and give its rows as texts, ids or faults."""

    def read(name, data, fields=None):
        path = tmp_path / name
        path.write_bytes(data)
        source = open_source(path, fields)
        rows = list(source.rows())
        assert source.count() == len(rows)
        assert [row.index for row in rows] == list(range(len(rows)))
        return [row.text or row.ids or f"bad: {row.fault}" for row in rows]

    return read


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b"", []),
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\nb", ["a", "b"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", ["a", "\ufeffb"]),
        (b"a\n\n\r\nb\n\n", ["a", "bad: empty", "bad: empty", "b", "bad: empty"]),
        (b"a\nb\xff\nc\x00\n", ["a", "bad: not valid UTF-8 at byte 1", "c\0"]),
        ("a\u2028b\x0bc\rd\x85\n".encode(), ["a\u2028b\x0bc\rd\x85"]),
        (b"\xed\xa0\x80\n \n", ["bad: not valid UTF-8 at byte 0", " "]),
    ],
)
def test_each_line_is_a_text(read, data, rows):
    assert read("a.txt", data) == rows


def test_line_limit_holds_and_the_next_line_is_whole():
    data = b"\xef\xbb\xbf123\n1234\n12345\n" + b"x" * 5000 + b"\nab\n" + b"y" * 9
    stream = Stream("a", lambda: nullcontext(io.BytesIO(data)))
    lines = list(read_lines(stream, limit=6))
    assert lines == [b"\xef\xbb\xbf123\n", b"1234\n", b"12345\n", b"x" * 7, b"ab\n", b"y" * 7]


@pytest.mark.parametrize(("name", "header"), [("a.jsonl", b""), ("a.csv", b"text\n")])
def test_endless_line_is_a_bad_row(tmp_path, name, header):
    with (tmp_path / name).open("wb") as file:
        file.write(header)
        file.seek(MAX_ROW_BYTES + 10, io.SEEK_CUR)
        file.write(b'\n"good"\n')
    bad, good = open_source(tmp_path / name, Fields()).rows()
    assert bad.fault.endswith("longer than 67,108,864 bytes")
    assert good.text.strip('"') == "good"


def test_utf_16_is_refused_with_the_remedy(read):
    for encoding in ("utf-16-le", "utf-16-be"):
        with pytest.raises(InputError, match=r"a.txt is UTF-16; convert it to UTF-8"):
            read("a.txt", ("\ufeff" + "text").encode(encoding))


def test_jsonl_holds_objects_strings_and_ids(read):
    lines = [{"text": "a"}, "b", [1, 2], {"input_ids": [3]}, {"token_ids": [4], "n": None}]
    data = "\r\n".join(map(json.dumps, lines)).encode()
    found = read("a.jsonl", data)
    assert found[:3] == ["a", "b", (1, 2)]
    assert found[3] == "bad: no column 'text'; there are 'input_ids'"
    assert read("b.jsonl", b"[1]\n" + data)[1:] == ["a", "b", (1, 2), (3,), (4,)]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"", "empty"),
        (b" ", "empty"),
        (b'{"text": "a"', "not sound JSON: Expecting ',' delimiter"),
        (b'{"text": "\xff"}', "not valid UTF-8 at byte 10"),
        (b'{"text": "\\udc00"}', "a lone surrogate at character 0"),
        (b"[" * 200_000, "not sound JSON: maximum recursion depth exceeded"),
        (b"9" * 5000, "not sound JSON: Exceeds the limit"),
        (b'{"body": "a"}', "no column 'text'; there are 'body'"),
        (b"null", "a row is a text, token ids or columns, not null"),
    ],
)
def test_bad_line_of_jsonl_is_alone(read, line, fault):
    first, bad, last = read("a.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "\\u0000"}\n')
    assert (first, last) == ("a", "\0")
    assert bad.startswith(f"bad: {fault}")


def test_csv_cells_hold_quotes_and_line_feeds(read):
    data = b'\xef\xbb\xbfid,text\r\n1,"a ""b"",\r\n\r\nc"\r\n2,d\x00\r\n'
    assert read("a.csv", data) == ['a "b",\r\n\r\nc', "d\0"]
    assert read("a.tsv", data.replace(b",", b"\t")) == ['a "b"\t\r\n\r\nc', "d\0"]


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (b"", "empty"),
        (b"1", "1 cells, while the header names 2 columns"),
        (b"1,a,b", "3 cells, while the header names 2 columns"),
        (b"1,\xff", "not valid UTF-8 at byte 0"),
        (b"1,", "empty"),
        (b'1,"a"b', "not sound CSV: ',' expected after '\"'"),
    ],
)
def test_bad_record_of_csv_is_alone(read, record, fault):
    first, bad, last = read("a.csv", b"id,text\n0,a\n" + record + b"\n2,b\n")
    assert (first, bad, last) == ("a", f"bad: {fault}", "b")


def test_bad_utf8_in_a_column_that_is_not_read_is_no_fault(read):
    assert read("a.csv", b"note,text\n\xff,a\n") == ["a"]


def test_quote_that_is_never_closed_is_a_bad_row(read):
    assert read("a.csv", b'text\na\n"b\nc\n') == ["a", "bad: not sound CSV: unexpected end of data"]


def test_cells_may_be_long_and_the_limit_of_others_stays(read):
    before = csv.field_size_limit()
    assert read("a.csv", b"text\n" + b"a" * 200_000 + b"\nb\n") == ["a" * 200_000, "b"]
    assert csv.field_size_limit() == before


def test_csv_holds_ids_and_spans_as_json(read):
    ids = Fields(ids="ids", label="class")
    assert read("a.csv", b'ids,class\n"[1, 2]",x\n', ids) == [(1, 2)]
    assert read("a.csv", b'text,at\nabc,"[1, 2]"\nabc,2\n', Fields(span="at"))[0] == "abc"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no header line"),
        (b"\na\n", "has no header line"),
        (b"a,b,a\n", "two columns 'a'"),
    ],
)
def test_csv_without_usable_header_is_refused(read, data, message):
    with pytest.raises(InputError, match=message):
        read("a.csv", data)
