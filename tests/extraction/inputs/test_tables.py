import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from phiscope.errors import InputError
from phiscope.extraction.inputs import Fields, open_source


def write(table, path, **options):
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
        return path
    new_writer = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
    options = pa.ipc.IpcWriteOptions(**options)
    with pa.OSFile(str(path), "wb") as file, new_writer(file, table.schema, options=options) as out:
        out.write_table(table, max_chunksize=3)
    return path


@pytest.fixture(params=["a.parquet", "a.arrow", "a.arrows"])
def path(request, tmp_path):
    return tmp_path / request.param


def test_bad_utf8_is_the_fault_of_one_row(path):
    text = pa.array([b"a", b"b\xff", b"c"], pa.binary()).view(pa.string())
    table = pa.table({"id": ["x", "y", "z"], "text": text})
    rows = list(open_source(write(table, path)).rows())
    assert [row.text for row in rows] == ["a", None, "c"]
    assert (rows[1].id, rows[1].fault) == ("y", "not valid UTF-8 at byte 1")


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]
)
def test_any_type_of_string_is_text(path, kind):
    table = pa.table({"n": [1, 2], "body": pa.array(["a", None]).cast(kind)})
    texts = [(row.text, row.fault) for row in open_source(write(table, path)).rows()]
    assert texts == [("a", None), (None, "column 'body' is null")]


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.uint16()])
def test_lists_of_any_integers_are_token_ids(path, kind):
    table = pa.table({"input_ids": pa.array([[1, 2], [], None, [3, None]], pa.list_(kind))})
    rows = list(open_source(write(table, path)).rows())
    assert [row.ids for row in rows] == [(1, 2), None, None, None]
    assert [row.fault for row in rows[1:3]] == ["empty", "column 'input_ids' is null"]


def test_compressed_tables_are_read_and_counted(tmp_path):
    table = pa.table({"n": list(range(10)), "text": [f"text {i}" for i in range(10)]})
    for name in ("a.arrow", "a.arrows", "a.parquet"):
        source = open_source(write(table, tmp_path / name, compression="lz4"))
        assert source.count() == 10
        assert [row.text for row in source.rows(4)] == table["text"].to_pylist()[4:]


def test_column_with_a_dot_in_its_name_is_found(path):
    table = pa.table({"a": ["x"], "a.b": ["y"]})
    assert next(open_source(write(table, path), Fields(text="a.b")).rows()).text == "y"


def test_absent_column_is_refused_with_those_there_are(path):
    table = pa.table({"title": ["a"], "score": [1]})
    with pytest.raises(InputError, match=r"no column 'body'; there are 'title', 'score'"):
        open_source(write(table, path), Fields(text="body"))


def test_column_of_numbers_is_no_text(path):
    with pytest.raises(InputError, match="the column 'text' does not hold strings; name another"):
        open_source(write(pa.table({"text": [1, 2]}), path))


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(InputError, match="two columns 'text'"):
        open_source(write(table, tmp_path / "a.arrow"))


def test_what_is_no_table_is_refused(path):
    for data in (b"", b"no table, whatever its name says", b"ARROW1\0\0", b"PAR1PAR1"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"cannot read .*{path.name}: "):
            open_source(path)


def test_file_cut_short_is_never_taken_for_whole(path):
    table = pa.table({"text": [f"text {i}" for i in range(20)]})
    data = write(table, path).read_bytes()
    for size in range(0, len(data) - 8, 41):
        path.write_bytes(data[:size])
        try:
            source = open_source(path)
            num_rows = sum(1 for _ in source.rows())
        except InputError:
            continue
        # A stream may end after any batch; nothing in the format tells.
        assert path.suffix == ".arrows"
        assert num_rows % 3 == 0


def test_offsets_beyond_the_data_are_refused_and_not_followed(tmp_path):
    path = write(pa.table({"text": ["aaaa", "bbbb", "cccc"]}), tmp_path / "a.arrows")
    data = path.read_bytes()
    offsets = b"".join(x.to_bytes(4, "little") for x in (0, 4, 8, 12))
    wrong = b"".join(x.to_bytes(4, "little") for x in (0, 4, 10**9, 12))
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, wrong))
    source = open_source(path)
    with pytest.raises(InputError, match=r"cannot read .*a\.arrows: Offset invariant failure"):
        list(source.rows())
    with pytest.raises(InputError, match="Offset invariant failure"):
        list(source.rows(1))


def test_splits_of_a_saved_dataset_are_named(tmp_path):
    part = Dataset.from_dict({"text": ["a"]})
    DatasetDict(train=part, test=part).save_to_disk(str(tmp_path))
    with pytest.raises(
        InputError, match="several splits; give the folder of one of them: 'train', "
    ):
        open_source(tmp_path)
    assert [row.text for row in open_source(tmp_path / "train").rows()] == ["a"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", "not sound JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "names no data files"),
        (json.dumps({"_data_files": []}), "names no file in its folder"),
        (json.dumps({"_data_files": [{"filename": "../a.arrow"}]}), "no file in its folder: '../a"),
        (json.dumps({"_data_files": [{"filename": "a.arrow"}]}), "a.arrow: .*No such file"),
        (json.dumps({"_data_files": [], "_indices_data_files": [1]}), "selection of rows"),
    ],
)
def test_damaged_dataset_is_refused(tmp_path, state, message):
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(InputError, match=message):
        open_source(tmp_path)


def test_file_of_a_dataset_without_the_column_is_named(tmp_path):
    files = [{"filename": "0.arrows"}, {"filename": "1.arrows"}]
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": files}))
    write(pa.table({"text": ["a"]}), tmp_path / "0.arrows")
    write(pa.table({"body": ["b"]}), tmp_path / "1.arrows")
    rows = open_source(tmp_path).rows()
    assert next(rows).text == "a"
    with pytest.raises(InputError, match=r"1\.arrows: no column 'text'; there are 'body'"):
        next(rows)
