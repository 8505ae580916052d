import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from phiscope.errors import FilterError, StoreError
from phiscope.filtering import Filter, scoring
from phiscope.filtering.scoring import score_store
from phiscope.store import open_store


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(scoring, "BATCH_ROWS", 100)


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.parquet", ".jsonl"])
def test_every_row_has_its_id_score_and_keep(name, fitted, folder, texts, phi, tmp_path):
    scored = score_store(fitted(), folder, tmp_path / name)
    if name.endswith(".parquet"):
        rows = pq.read_table(tmp_path / name).to_pylist()
    else:
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    assert [row["id"] for row in rows] == open_store(folder).ids
    scores = np.array([row["score"] for row in rows])
    np.testing.assert_allclose(scores, fitted().score(phi, texts), atol=1e-5)
    assert [row["keep"] for row in rows] == fitted().keep(scores).tolist()
    assert (scored.num_rows, scored.num_kept) == (240, sum(row["keep"] for row in rows))


def test_a_store_of_more_rows_and_columns_is_scored_alike(fitted, write_store, rows, tmp_path):
    other = write_store(rows[::2], points="resid_post.[1,2]", pool=("max", "last", "mean"))
    assert score_store(fitted(), other, tmp_path / "s.jsonl").num_rows == 120


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": "resid_post.[0,1]"}, "their weights cannot be compared"),
        ({"tokens": "last:2"}, "read with tokens 'last:2'.*'all'"),
        ({"window": 100}, "read with window 100"),
    ],
)
def test_states_of_another_reading_are_refused(
    fitted, write_store, rows, tmp_path, settings, message
):
    other = write_store(rows[:4], **settings)
    with pytest.raises(FilterError, match=message):
        score_store(fitted(), other, tmp_path / "s.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_store_without_the_columns_is_refused_even_if_any_model_will_do(
    fitted, write_store, rows, tmp_path
):
    other = write_store(rows[:4], pool="max")
    with pytest.raises(FilterError, match=r"no column 'resid_post\.1\.mean'; extract with"):
        score_store(fitted(), other, tmp_path / "s.jsonl", any_model=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["s.jsonl", "s.parquet"])
def test_an_error_leaves_the_file_that_was_there(name, fitted, folder, tmp_path, monkeypatch):
    out = tmp_path / name
    out.write_text("before")
    monkeypatch.setattr(Filter, "keep", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score_store(fitted(), folder, out)
    assert out.read_text() == "before"
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_cannot_be_written_is_named(fitted, folder, tmp_path):
    for name in ("s.jsonl", "s.parquet"):
        with pytest.raises(StoreError, match=name):
            score_store(fitted(), folder, tmp_path / "absent" / name)


def test_another_ending_is_refused(fitted, folder, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.jsonl or \.parquet"):
        score_store(fitted(), folder, tmp_path / "s.csv")
