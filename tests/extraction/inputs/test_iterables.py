import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict

from phiscope.extraction.inputs import Fields, Row, open_source

CELLS = {"id": ["x", "y", "z"], "text": ["a", "", "c"]}
ROWS = [
    Row(index=0, id="x", text="a"),
    Row(index=1, id="y", fault="empty"),
    Row(index=2, id="z", text="c"),
]


def make_reader():
    table = pa.table(CELLS)
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Dataset.from_dict(CELLS),
        lambda: Dataset.from_dict(CELLS).to_iterable_dataset(),
        lambda: pa.table(CELLS),
        lambda: pa.record_batch(CELLS),
        make_reader,
        lambda: pd.DataFrame(CELLS),
        lambda: pl.DataFrame(CELLS),
        lambda: pa.table(CELLS).to_pylist(),
        lambda: iter(pa.table(CELLS).to_pylist()),
        lambda: tuple(pa.table(CELLS).to_pylist()),
    ],
)
def test_tables_datasets_and_mappings_give_equal_rows(make):
    source = open_source(make())
    assert source.count() in (3, None)
    assert [*source.rows(0, 1), *source.rows(1)] == ROWS
    if source.repeatable:
        assert list(open_source(make()).rows(2)) == ROWS[2:]


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        iter,
        lambda texts: (text for text in texts),
        lambda texts: [text.encode() for text in texts],
        np.array,
        pd.Series,
        pl.Series,
        pa.array,
        lambda texts: pa.chunked_array([texts]),
    ],
)
def test_strings_may_come_in_anything(make):
    rows = list(open_source(make(["a", "b\u00e9"])).rows())
    assert [(row.id, row.text) for row in rows] == [("0", "a"), ("1", "b\u00e9")]


@pytest.mark.parametrize(
    "data",
    [
        np.array([[1, 2], [3, 4]], np.int32),
        torch.tensor([[1, 2], [3, 4]]),
        [torch.tensor([1, 2]), torch.tensor([3, 4])],
        Dataset.from_dict({"input_ids": [[1, 2], [3, 4]]}).with_format("torch"),
        iter([[1, 2], (3, 4)]),
    ],
)
def test_token_ids_may_come_in_anything(data):
    assert [row.ids for row in open_source(data).rows()] == [(1, 2), (3, 4)]


def test_texts_ids_and_columns_may_be_mixed():
    rows = list(open_source(["a", [1], {"text": "b"}, {"input_ids": [2]}, None]).rows())
    assert [row.text or row.ids for row in rows] == ["a", (1,), "b", (2,), None]


def test_nothing_has_no_rows():
    for data in ([], iter([]), {}.values()):
        assert list(open_source(data, Fields(text="body")).rows()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"text": ["a"]}, "a mapping is no list of rows; give one of 'text'"),
        (DatasetDict(train=Dataset.from_dict(CELLS)), "give one of 'train'"),
        ([1, 2, 3], r"the token ids of one text go into a list: \[ids\]"),
        (torch.tensor([1, 2, 3]), r"integers \(rows, tokens\), got int64 \(3,\)"),
        (np.zeros((2, 3)), r"integers \(rows, tokens\), got float64 \(2, 3\)"),
        (np.zeros((2, 3, 4), np.int64), "one text alone goes into a list"),
        (b"a text", "rows come from a path, an iterable or a table, not bytes"),
        (None, "not NoneType"),
    ],
)
def test_what_would_give_other_rows_than_meant_is_refused(data, message):
    with pytest.raises(TypeError, match=message):
        open_source(data)
