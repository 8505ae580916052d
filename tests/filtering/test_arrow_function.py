import pickle

import numpy as np
import pyarrow as pa
import pytest

from phiscope.errors import FilterError, InputError
from phiscope.extraction.inputs import Fields
from phiscope.filtering import FilterOptions, LabelFields, fit_filter, make_filter_function
from phiscope.filtering.arrow_function import _check
from phiscope.store import open_store


@pytest.fixture(scope="module")
def filter_folder(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("filters") / "ridge"
    fitted().save(path)
    return path


@pytest.fixture(scope="module")
def function(filter_folder):
    made = make_filter_function(filter_folder, model="nano", mode="fp32-cpu")
    return pickle.loads(pickle.dumps(made))


def test_a_table_comes_back_with_the_scores_of_its_texts(function, fitted, phi, texts):
    table = pa.table({"number": range(240), "text": texts})
    given = function(table)
    assert given.column_names == ["number", "text", "score", "keep", "error"]
    assert given.select(["number", "text"]).equals(table)
    scores = given["score"].to_numpy()
    np.testing.assert_allclose(scores, fitted().score(phi, texts), atol=1e-5)
    assert given["keep"].to_pylist() == fitted().keep(scores).tolist()
    assert given["error"].null_count == 240


def test_a_text_that_cannot_be_served_has_nulls_and_its_fault(function, texts):
    given = function(pa.table({"text": [texts[0], "", None, "word " * 400, texts[1]]}))
    assert given["score"].is_null().to_pylist() == [False, True, True, True, False]
    assert given["keep"].is_null().to_pylist() == [False, True, True, True, False]
    assert given["error"].to_pylist()[:2] == [None, "empty"]


def test_tables_without_rows_or_without_sound_ones_have_the_columns_too(function):
    for texts in ([], [""]):
        given = function(pa.table({"text": pa.array(texts, pa.string())}))
        assert (given.num_rows, given.column_names[1:]) == (len(texts), ["score", "keep", "error"])
        assert given["score"].type == pa.float64()


def test_the_column_of_texts_can_have_another_name(filter_folder, function, texts):
    settings = {"model": "nano", "mode": "fp32-cpu", "fields": Fields(text="body")}
    other = make_filter_function(filter_folder, **settings)
    given = other(pa.table({"body": texts[:3], "text": ["", "", ""]}))
    assert given["score"].equals(function(pa.table({"text": texts[:3]}))["score"])


def test_the_model_is_checked_once_and_loaded_once(function, texts):
    function(pa.table({"text": texts[:1]}))
    before = _check.cache_info().misses
    first = function.states.load()
    function(pa.table({"text": texts[1:2]}))
    assert function.states.load() is first
    assert _check.cache_info().misses == before


def test_a_column_of_such_a_name_is_not_overwritten(function):
    with pytest.raises(InputError, match="a column 'score' already"):
        function(pa.table({"text": ["a"], "score": [1.0]}))


def test_another_model_is_refused_before_anything_is_sent(filter_folder):
    with pytest.raises(FilterError, match="another config"):
        make_filter_function(filter_folder, model="tiny")


def test_other_weights_are_refused_where_they_are_loaded(filter_folder, texts):
    settings = {"model": "nano", "mode": "bf16-cpu"}
    table = pa.table({"text": texts[:2]})
    with pytest.raises(FilterError, match="other weights, or the same in another mode"):
        make_filter_function(filter_folder, **settings)(table)
    given = make_filter_function(filter_folder, **settings, any_model=True)(table)
    assert given["score"].null_count == 0


def test_long_texts_and_chosen_tokens_are_read_as_the_store_was(write_store, rows, tmp_path):
    store = write_store(tokens="last:3", overflow="window", dtype="float32")
    options = FilterOptions(positive="textbook", held_out=0.4)
    fitted = fit_filter(store, rows, options, fields=LabelFields(group="template"))
    fitted.save(tmp_path / "f")
    function = make_filter_function(tmp_path / "f", model="nano", mode="fp32-cpu")
    given = function(pa.table({"text": [*(row["text"] for row in rows), "word " * 400]}))
    wanted = fitted.score_vectors(fitted.features.read(open_store(store), slice(None)))
    np.testing.assert_allclose(given["score"].to_numpy()[:-1], wanted, atol=1e-5)
    assert given["error"].null_count == 241


def test_datasets_map_takes_it(function, texts):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": texts[:20]}).with_format("arrow")
    given = data.map(function, batched=True, batch_size=8, new_fingerprint="scored")
    assert given.with_format(None)["score"] == function(data[:])["score"].to_pylist()
