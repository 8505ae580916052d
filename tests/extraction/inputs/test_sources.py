import itertools
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phiscope.errors import InputError
from phiscope.extraction.inputs import Row, open_source


def expected(records):
    return [Row(index=i, id=r["id"], text=r["text"]) for i, r in enumerate(records)]


def test_each_format_gives_equal_rows(table, records):
    assert list(open_source(table).rows()) == expected(records)


def test_count_is_the_number_of_rows(table, records):
    source = open_source(table)
    assert source.count() == source.count() == len(records)


def test_spec_names_the_format_and_the_columns_used(table):
    spec = dict(open_source(table).spec)
    assert spec.pop("format") in ("jsonl", "csv", "tsv", "parquet", "arrow", "dataset")
    assert {name for name in spec if spec[name] is not None} == {"text"}


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 26), max_size=5))
def test_ascending_pieces_are_one_pass(table, records, cuts):
    source = open_source(table)
    bounds = [0, *sorted(cuts), None]
    pieces = [list(source.rows(a, b)) for a, b in itertools.pairwise(bounds)]
    assert list(itertools.chain(*pieces)) == expected(records)


@settings(max_examples=15, deadline=None)
@given(pieces=st.lists(st.tuples(st.integers(0, 26), st.integers(0, 26)), max_size=5))
def test_any_pieces_in_any_order_are_those_of_the_whole(table, records, pieces):
    source, whole = open_source(table), expected(records)
    for start, length in pieces:
        assert list(source.rows(start, start + length)) == whole[start : start + length]


def test_two_passes_side_by_side_do_not_disturb_each_other(table, records):
    source = open_source(table)
    pairs = list(zip(source.rows(), source.rows(), strict=True))
    assert [first for first, _ in pairs] == [second for _, second in pairs] == expected(records)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 26), max_size=5), skips=st.booleans())
def test_iterator_gives_ascending_pieces(records, cuts, skips):
    source = open_source(iter(records))
    bounds = [0, *sorted(cuts), 30]
    ranges = list(itertools.pairwise(bounds))[:: 2 if skips else 1]
    for start, stop in ranges:
        assert list(source.rows(start, stop)) == expected(records)[start:stop]


def test_iterator_is_read_no_further_than_asked():
    items = iter(["a", "b", "c", "d"])
    source = open_source(items)
    assert [row.text for row in source.rows(0, 2)] == ["a", "b"]
    assert next(items) == "c"


def test_rows_that_were_read_are_not_kept():
    class Cells(dict):
        pass

    def give():
        for _ in range(300):
            cells = Cells(body="a")
            given.append(weakref.ref(cells))
            yield cells

    given = []
    source = open_source(give())
    assert max(sum(ref() is not None for ref in given) for _ in source.rows(100)) <= 3


def test_iterator_cannot_go_back():
    source = open_source(iter(["a", "b", "c"]))
    assert not source.repeatable
    assert source.count() is None
    assert [row.text for row in source.rows(1, 2)] == ["b"]
    with pytest.raises(InputError, match="texts can be read once, and row 0 was passed; give a fi"):
        source.rows(0)
    assert [row.text for row in source.rows(2)] == ["c"]


def test_iterator_that_ended_cannot_go_back():
    source = open_source(iter(["a", "b"]))
    assert list(source.rows(5, 9)) == []
    with pytest.raises(InputError, match="row 1 was passed"):
        source.rows(1)


def test_interrupted_iterator_does_not_pass_for_ended():
    def give():
        yield "a"
        raise KeyboardInterrupt

    source = open_source(give())
    with pytest.raises(KeyboardInterrupt):
        list(source.rows())
    with pytest.raises(InputError, match="row 1 was passed"):
        source.rows(1)


def test_list_whose_row_failed_can_be_read_again():
    class Flaky(list):
        fails_at = None

        def __getitem__(self, index):
            if index == self.fails_at:
                raise OSError("try again")
            return super().__getitem__(index)

    texts = Flaky("abc")
    source = open_source(texts)
    texts.fails_at = 1
    with pytest.raises(OSError, match="try again"):
        list(source.rows())
    texts.fails_at = None
    assert [row.text for row in source.rows(1)] == ["b", "c"]


def test_ranges_that_are_none_are_refused():
    for start, stop in [(-1, None), (3, 2)]:
        with pytest.raises(ValueError, match="are no range"):
            open_source(["a"]).rows(start, stop)


def test_input_of_bad_rows_alone_is_refused_when_it_is_long(tmp_path):
    path = tmp_path / "prose.jsonl"
    path.write_text("no JSON\n" * 99)
    assert [row.fault is None for row in open_source(path).rows()] == [False] * 99
    path.write_text("no JSON\n" * 100)
    with pytest.raises(
        InputError, match=r"prose.jsonl: the first 100 rows are bad, row 0: not sou"
    ):
        open_source(path)
