import math

import numpy as np
import pytest
from small_stores import make_text_store, make_token_store

from phiscope.errors import StoreError
from phiscope.store import Column, set_verification
from phiscope.store.reader import open_store
from phiscope.views.view import describe_store, tabulate, view_store

IDS = [f"text-{i}" for i in range(9)]
COLUMNS = [
    Column(name="resid_post.0.mean", dtype="float16", shape=(6,)),
    Column(name="resid_post.1.mean", dtype="bfloat16", shape=(6,)),
    Column(name="z.1.last", dtype="float32", shape=(2, 3)),
    Column(name="logits.last.top_ids", dtype="int32", shape=(4,)),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "states"
    return make_text_store(folder, COLUMNS, IDS, clamped={"resid_post.0.mean": 3})


def test_figures_are_those_of_all_rows(store):
    for summary in describe_store(store)[:3]:
        x = store[summary.column].float32().reshape(9, -1).astype(float)
        norms = np.linalg.norm(x, axis=1)
        assert summary.mean_norm == pytest.approx(norms.mean())
        assert summary.std_norm == pytest.approx(norms.std())
        assert (summary.least, summary.most) == (x.min(), x.max())
        assert summary.nonzero == pytest.approx(np.count_nonzero(x) / x.size)
        assert (summary.dtype, summary.shape) == (
            store[summary.column].column.dtype,
            store[summary.column].column.shape,
        )


def test_whole_numbers_have_no_norm(store):
    summary = describe_store(store)[3]
    assert summary.mean_norm is None
    assert summary.most == store["logits.last.top_ids"].numpy().max()


def test_few_rows_stand_for_many(tmp_path):
    column = Column(name="resid_post.0.mean", dtype="float32", shape=(3,))
    generator = np.random.default_rng(0)
    values = generator.standard_normal((3000, 3)).astype(np.float32)
    ids = [str(i) for i in range(3000)]
    options = {"shard_size": 1000, "values": {column.name: values}}
    store = make_text_store(tmp_path / "store", [column], ids, **options)
    (summary,) = describe_store(store, max_rows=500)
    assert summary.num_rows == 3000
    assert summary.mean_norm == pytest.approx(np.linalg.norm(values, axis=1).mean(), rel=0.05)
    assert view_store(store, max_rows=500).sampling == "500 of 3,000 texts, evenly spread"


def test_the_table_shows_what_there_is(store):
    header, rows = tabulate(describe_store(store))
    assert header[:5] == ["column", "dtype", "shape", "rows", "mean norm"]
    assert header[-1] == "clamped"
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert table["resid_post.0.mean"]["clamped"] == "3"
    assert table["z.1.last"]["shape"] == "2x3"
    assert table["logits.last.top_ids"]["mean norm"] == "-"


def test_the_error_of_a_verification_is_shown(tmp_path):
    make_text_store(tmp_path / "store", COLUMNS[:2], IDS)
    verification = {"columns": {"resid_post.1.mean": {"max_rel": 0.00123}}}
    set_verification(tmp_path / "store", verification)
    summaries = describe_store(open_store(tmp_path / "store"))
    assert [each.error for each in summaries] == [None, 0.00123]
    header, rows = tabulate(summaries)
    assert [row[header.index("error")] for row in rows] == ["-", "0.001230"]


def test_a_view_of_texts_has_layers_and_a_projection(store):
    view = view_store(store, labels={"text-1": "rude"})
    assert view.sampling == "all 9 texts"
    assert [curve.places for curve in view.by_layer] == [(0, 1)]
    norms = [each.mean_norm for each in view.columns[:2]]
    assert list(view.by_layer[0].norms) == norms
    assert view.by_position == ()
    assert view.projection.column == "resid_post.1.mean"
    assert view.projection.labels[1] == "rude"
    assert view_store(store, column="z.1.last").projection.column == "z.1.last"
    with pytest.raises(StoreError, match="no column 'q'"):
        view_store(store, column="q")


def test_a_view_of_tokens_has_positions(tmp_path):
    column = Column(name="resid_post.1", dtype="float32", shape=(2,))
    texts = [("a", [1, 2, 3]), ("b", [4, 5])]
    store = make_token_store(tmp_path / "store", [column], texts)
    (curve,) = view_store(store).by_position
    norms = np.linalg.norm(store["resid_post.1"].numpy(), axis=1)
    assert curve.places == (0, 1, 2)
    expected = [(norms[0] + norms[3]) / 2, (norms[1] + norms[4]) / 2, norms[2]]
    assert curve.norms == pytest.approx(expected)


def test_an_empty_store_has_a_table_without_figures(tmp_path):
    view = view_store(make_text_store(tmp_path / "store", COLUMNS, []))
    assert (view.by_layer, view.projection, view.sampling) == ((), None, "all 0 texts")
    header, rows = tabulate(view.columns)
    assert header == ["column", "dtype", "shape"]
    assert rows[0] == ["resid_post.0.mean", "float16", "6"]


def test_a_share_that_is_not_whole_is_not_shown_as_whole(tmp_path):
    column = Column(name="resid_post.0.mean", dtype="float32", shape=(100,))
    values = np.ones((100, 100), dtype=np.float32)
    values[0, 0] = 0
    ids = [str(i) for i in range(100)]
    options = {"shard_size": 100, "values": {column.name: values}}
    summaries = describe_store(make_text_store(tmp_path / "store", [column], ids, **options))
    assert math.isclose(summaries[0].nonzero, 0.9999)
    header, rows = tabulate(summaries)
    assert rows[0][header.index("% nonzero")] == "99.9"
