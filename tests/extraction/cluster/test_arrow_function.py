import pickle
import runpy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from phiscope.errors import InputError, PointError
from phiscope.extraction.cluster.arrow_function import make_arrow_function
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.inputs import Fields, open_source
from phiscope.extraction.job import Job, run_job
from phiscope.extraction.options import make_options
from phiscope.loading import ModelSpec
from phiscope.store import open_store

EXAMPLE = Path(__file__).parents[3] / "examples" / "arrow_batches.py"
TEXTS = [f"def f{i}(x): return x + {i}\n" * (1 + i % 3) for i in range(10)]
POOLED = {"points": "resid_post.[0,1]", "pool": ("mean", "last"), "shard_size": 4}
TOKENS = {"points": "resid_post.0", "shard_size": 4}


class Frame:
    """Does with the function what a Spark data frame does with it."""

    def __init__(self, table):
        self.table = table

    def mapInArrow(self, func, schema):  # noqa: N802
        sent = pickle.loads(pickle.dumps(func))
        given = pa.Table.from_batches(sent(iter(self.table.to_batches())))
        assert schema.split(", ")[0] == f"`{given.schema.names[0]}` STRING"
        return given


@pytest.fixture(scope="module")
def table():
    """Texts with ids of their own, two of them bad."""
    texts = [*TEXTS[:3], "", *TEXTS[3:], None]
    return pa.table({"id": [f"t{i}" for i in range(len(texts))], "text": texts})


@pytest.fixture(scope="module")
def write_store(table, tmp_path_factory):
    """The store that `extract` writes of the same texts."""
    model, tokenizer, _ = ModelSpec(name="nano", mode="fp32-cpu").load()

    def write(settings):
        extractor = Extractor(model, tokenizer, make_options(**settings))
        folder = tmp_path_factory.mktemp("stores") / "store"
        run_job(Job(extractor=extractor, source=open_source(table), out=folder))
        return open_store(folder)

    return write


def make(**settings):
    return make_arrow_function("nano", mode="fp32-cpu", **settings)


def run(function, table, batch_rows=5):
    batches = list(function(iter(table.to_batches(max_chunksize=batch_rows))))
    return pa.Table.from_batches(batches, function.schema)


def test_gives_a_row_for_each_row_in_their_order(table):
    given = run(make(**POOLED), table)
    assert given["id"].equals(table["id"])
    errors = given["error"].to_pylist()
    assert [number for number, error in enumerate(errors) if error] == [3, 11]
    assert errors[3] == "empty"
    bad = given.take([3, 11])
    assert all(
        bad[name].null_count == 2 for name in given.column_names if name not in ("id", "error")
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("settings", [POOLED, TOKENS], ids=["texts", "tokens"])
def test_sound_rows_are_those_of_the_store(table, write_store, settings, dtype):
    settings = {**settings, "dtype": dtype}
    stored = write_store(settings).table()
    given = run(make(**settings), table)
    sound = given.filter(pa.compute.is_null(given["error"])).drop_columns(["error", "warning"])
    assert sound.combine_chunks().equals(stored.combine_chunks())
    assert sound.schema.equals(stored.schema, check_metadata=True)


@pytest.mark.parametrize("batch_rows", [1, 3, 100])
def test_size_of_batches_changes_nothing(table, batch_rows):
    function = make(**POOLED)
    assert run(function, table, batch_rows).equals(run(function, table))


def test_bad_row_of_tokens_is_one_row_with_its_error(table):
    given = run(make(**TOKENS), table)
    bad = given.filter(pa.compute.is_valid(given["error"])).to_pylist()
    assert [row["id"] for row in bad] == ["t3", "t11"]
    assert bad[0]["pos"] is bad[0]["token_id"] is bad[0]["resid_post.0"] is None


def test_pickled_function_gives_the_same(table):
    function = make(**POOLED)
    assert run(pickle.loads(pickle.dumps(function)), table).equals(run(function, table))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_spark_gets_lists_of_the_same_numbers_as_float32(table, write_store, dtype):
    settings = {**POOLED, "dtype": dtype}
    function = make(**settings, for_spark=True)
    name = "resid_post.1.mean"
    given = run(function, table)
    assert function.schema.field(name).type == pa.list_(pa.float32())
    states = np.stack([row for row in given[name].to_pylist() if row is not None])
    np.testing.assert_array_equal(states, write_store(settings)[name].float32())


def test_ddl_names_every_column_in_words_of_spark():
    settings = {**TOKENS, "points": "resid_post.0,logits", "top_k": 2}
    assert make(**settings, for_spark=True).ddl == (
        "`id` STRING, `pos` INT, `token_id` INT, `resid_post.0` ARRAY<FLOAT>,"
        " `logits.top_ids` ARRAY<INT>, `logits.top_values` ARRAY<FLOAT>,"
        " `logits.logsumexp` ARRAY<FLOAT>, `error` STRING, `warning` STRING"
    )
    with pytest.raises(ValueError, match="for_spark"):
        _ = make(**settings).ddl


def test_warning_stands_beside_the_states_it_is_about(table):
    given = run(make(**POOLED, overflow="truncate", window=4), table)
    assert given["warning"][0].as_py().endswith("the first 4 were read")
    assert given["resid_post.0.mean"][0].is_valid
    assert given["error"][0].as_py() is None


def test_columns_are_chosen_by_fields(table):
    renamed = table.rename_columns(["name", "body"]).append_column("other", table["text"])
    function = make(**POOLED, fields=Fields(text="body", id="name"))
    given, plain = (
        t.drop_columns("error") for t in (run(function, renamed), run(make(**POOLED), table))
    )
    assert given.equals(plain)
    with pytest.raises(InputError, match="no column 'body'"):
        run(function, table)


def test_example_runs_and_hands_spark_the_function_with_its_columns(capsys, monkeypatch, table):
    monkeypatch.setattr("sys.argv", ["arrow_batches.py", "--model", "nano"])
    example = runpy.run_path(str(EXAMPLE))
    example["main"]()
    assert "nothing  empty" in capsys.readouterr().out
    function = make(**POOLED, for_spark=True)
    mapped = example["extract_with_spark"](Frame(table), function)
    assert mapped.equals(run(function, table))


def test_spark_is_refused_a_frame_without_ids():
    function = make(**POOLED, for_spark=True)
    batch = pa.RecordBatch.from_pydict({"text": ["a text"]})
    with pytest.raises(InputError, match="no column 'id'"):
        next(function([batch]))


def test_no_batches_give_none():
    assert list(make(**POOLED)(iter(()))) == []


def test_wrong_point_is_refused_before_any_batch():
    with pytest.raises(PointError, match="resid_post"):
        make(points="resid_post.99", pool="mean")
