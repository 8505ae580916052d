import os

import numpy as np
import pytest
import torch
from store.faulty_disk import UnsyncedDisk
from store.small_job import BAD_ROW, SCHEMA, STATES, write_store

from phiscope.errors import StoreError
from phiscope.store import (
    Column,
    Schema,
    ShardKeys,
    ShardOrigin,
    StoreWriter,
    open_store,
    set_verification,
)
from phiscope.store import schema as schema_module

POSITIONS = {  # of the tokens that are stored: all, some, none, one
    "a": [0, 1, 2, 3],
    "b": [2, 5],
    "none": [],
    "c": [7],
    "d": [0, 1, 2],
}
ROWS = [(name, position) for name, positions in POSITIONS.items() for position in positions]
VALUES = np.arange(len(ROWS) * 6, dtype=np.float32).reshape(-1, 2, 3)
TOKENS = Schema(
    level="tokens", columns=(Column(name="resid_post.1", dtype="float32", shape=(2, 3)),)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "store"
    write_store(folder, UnsyncedDisk())
    return folder


@pytest.fixture
def texts(folder):
    """A store of texts; row BAD_ROW of its input is missing."""
    return open_store(folder)


@pytest.fixture(params=[1000, 2], ids=["one batch", "batches of two rows"])
def tokens(tmp_path, request, monkeypatch):
    """A store of tokens, in one shard."""
    monkeypatch.setattr(schema_module, "BATCH_BYTES", request.param * TOKENS.row_bytes)
    write_tokens(tmp_path / "tokens", [name for name, _ in ROWS])
    return open_store(tmp_path / "tokens")


def write_tokens(folder, ids):
    origin = ShardOrigin(begin=0, end=5, num_tokens=20, input_sha256="1f")
    positions = [position for _, position in ROWS]
    with StoreWriter.open(
        folder, TOKENS, job={}, shard_size=5, resume=False, disk=UnsyncedDisk()
    ) as writer:
        with writer.scratch(len(ids)) as scratch:
            scratch.put("resid_post.1", 0, VALUES)
            keys = ShardKeys(ids=ids, first=positions, second=range(len(ids)))
            writer.write_shard(0, keys, scratch, origin=origin)
        writer.finish()


def kept(column):
    return np.delete(STATES[column], BAD_ROW, axis=0)


def test_text_is_found_by_its_id(texts):
    values = texts.get("text-7", "resid_post.1", reducer="mean")
    np.testing.assert_array_equal(values, STATES["resid_post.1.mean"][7])
    np.testing.assert_array_equal(texts["z.1.last"][texts.row("text-7")], STATES["z.1.last"][7])


def test_tokens_are_found_by_id_and_position(tokens):
    for row, (name, position) in enumerate(ROWS):
        np.testing.assert_array_equal(tokens.get(name, "resid_post.1", position), VALUES[row])
    for name, positions in POSITIONS.items():
        rows = [row for row, (other, _) in enumerate(ROWS) if other == name]
        if positions:
            assert tokens.row(name) == slice(rows[0], rows[-1] + 1)
            np.testing.assert_array_equal(tokens.get(name, "resid_post.1"), VALUES[rows])


@pytest.mark.parametrize(
    "positions",
    [slice(None), slice(1, 3), slice(2, 6), slice(-2, None), slice(0, 9, 2), slice(4, 4)],
)
def test_slice_of_positions_is_that_of_the_text(tokens, positions):
    for name in ("a", "b", "d"):
        wanted = range(POSITIONS[name][-1] + 1)[positions]
        rows = [row for row, (other, pos) in enumerate(ROWS) if other == name and pos in wanted]
        found = tokens.get(name, "resid_post.1", positions)
        np.testing.assert_array_equal(found, VALUES[rows])


def test_negative_position_counts_from_the_last_stored(tokens):
    np.testing.assert_array_equal(tokens.get("b", "resid_post.1", -1), VALUES[5])
    np.testing.assert_array_equal(tokens.get("b", "resid_post.1", -4), VALUES[4])


def test_ids_are_those_of_the_texts_in_order(tokens, texts):
    assert tokens.ids == ["a", "b", "c", "d"]
    assert texts.ids == [f"text-{row}" for row in range(10) if row != BAD_ROW]


@pytest.mark.parametrize("batch_rows", [2, 1000])
def test_same_id_twice_in_a_row_is_two_texts(tmp_path, monkeypatch, batch_rows):
    monkeypatch.setattr(schema_module, "BATCH_BYTES", batch_rows * TOKENS.row_bytes)
    write_tokens(tmp_path / "tokens", ["x"] * 4 + ["x"] * 3 + ["y"] * 3)
    store = open_store(tmp_path / "tokens")
    assert store.ids == ["x", "x", "y"]
    assert store.row("y") == slice(7, 10)
    with pytest.raises(StoreError, match="several texts have the id 'x', as those at rows 0 and 4"):
        store.row("x")


def test_columns_beside_the_states_are_read_too(tokens, texts):
    assert tokens["pos"].numpy().tolist() == [position for _, position in ROWS]
    assert tokens["token_id"][2:4].tolist() == [2, 3]
    assert texts["num_tokens"][-1] == 10


def test_chunks_are_over_the_file_and_read_only(texts):
    chunks = list(texts["resid_post.1.mean"].chunks())
    assert not any(chunk.flags.owndata or chunk.flags.writeable for chunk in chunks)
    np.testing.assert_array_equal(np.concatenate(chunks), kept("resid_post.1.mean"))


def test_consecutive_rows_of_a_batch_are_not_copied(texts):
    view = texts["resid_post.1.mean"]
    assert np.shares_memory(view[1:3], next(view.chunks()))
    assert np.shares_memory(view[2], next(view.chunks()))


@pytest.mark.parametrize(
    "rows",
    [
        0,
        -1,
        np.int64(4),
        slice(None),
        slice(2, 7),
        slice(7, 2),
        slice(None, None, -2),
        [3, 0, -1, 3],
        [],
        np.arange(9) % 2 == 0,
        np.arange(9)[::-1],
    ],
    ids=str,
)
def test_view_is_indexed_as_an_array(texts, rows):
    for column in SCHEMA.columns:
        view, array = texts[column.name], kept(column.name)
        np.testing.assert_array_equal(view[rows], array[rows])
        assert (view.shape, view.dtype, len(view)) == (array.shape, array.dtype, len(array))


@pytest.mark.parametrize("rows", [9, -10, [0, 9], [[0]], [0.5], np.ones(3, bool)], ids=str)
def test_rows_that_do_not_exist_are_refused(texts, rows):
    with pytest.raises(IndexError):
        texts["z.1.last"][rows]


def test_view_is_an_array_to_numpy(texts):
    array = np.asarray(texts["resid_post.1.mean"], dtype=np.float32)
    np.testing.assert_array_equal(array, kept("resid_post.1.mean").astype(np.float32))


def test_bfloat16_is_restored_in_tensors_and_widened_in_arrays(texts):
    tensor = texts.tensor("z.1.last", [0, 3])
    assert tensor.dtype == torch.bfloat16
    assert tensor.shape == (2, 2, 3)
    wide = texts["z.1.last"].float32([0, 3])
    np.testing.assert_array_equal(tensor.float().numpy(), wide)
    halves = texts["resid_post.1.mean"]
    np.testing.assert_array_equal(halves.float32(), kept("resid_post.1.mean").astype(np.float32))


def test_table_has_all_rows_and_columns(texts):
    table = texts.table()
    assert table.num_rows == len(texts) == texts.num_rows == 9
    assert table["id"].to_pylist() == texts.ids
    assert texts.num_tokens == 55


@pytest.mark.parametrize(
    ("id", "point", "reducer", "fault"),
    [
        ("text-1", "resid_post.1", None, "no column 'resid_post.1' in .* 'resid_post.1.mean'"),
        ("text-1", "resid_post.2", "mean", "did you mean 'resid_post.1.mean'"),
        ("text-1", "q.7", None, "there is 'resid_post.1.mean', 'z.1.last', 'num_tokens'$"),
        (
            "tekst-1",
            "resid_post.1",
            "mean",
            "no text 'tekst-1' in the store; did you mean 'text-1'",
        ),
    ],
)
def test_unknown_names_are_met_with_the_known(texts, id, point, reducer, fault):
    with pytest.raises(StoreError, match=fault):
        texts.get(id, point, reducer=reducer)


def test_position_in_a_store_of_texts_is_refused(texts):
    with pytest.raises(StoreError, match="one row per text; leave out the position"):
        texts.get("text-1", "resid_post.1", 3, "mean")


def test_position_that_is_not_stored_is_refused(tokens):
    with pytest.raises(
        StoreError, match="'b' has no position 3 in the store; it has 2 from 2 to 5"
    ):
        tokens.get("b", "resid_post.1", 3)
    with pytest.raises(StoreError, match="no text 'none'"):
        tokens.get("none", "resid_post.1")


def test_verification_is_kept_in_the_manifest(tmp_path):
    write_store(tmp_path / "store", UnsyncedDisk())
    assert open_store(tmp_path / "store").manifest["verification"] is None
    set_verification(tmp_path / "store", {"resid_post.1.mean": {"max": 0.5}}, UnsyncedDisk())
    store = open_store(tmp_path / "store")
    assert store.manifest["verification"] == {"resid_post.1.mean": {"max": 0.5}}
    assert store.check() == []


def test_store_keeps_no_file_open(texts):
    before = len(os.listdir("/proc/self/fd"))
    views = [texts[column].numpy() for column in texts.columns]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(views) == 2
