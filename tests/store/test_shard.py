import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from store.faulty_disk import UnsyncedDisk

from phiscope.store import Column, Schema, Scratch, ShardKeys, ShardOrigin, write_shard
from phiscope.store import schema as schema_module

COLUMN = Column(name="resid_post.1", dtype="float32", shape=(16,))
SCHEMA = Schema(level="tokens", columns=(COLUMN,))
ORIGIN = ShardOrigin(begin=0, end=3, num_tokens=9, input_sha256="1f")
VALUES = np.arange(9 * 16, dtype=np.float32).reshape(9, 16)
NAMES = ["a"] * 4 + ["b"] * 5


def write(folder, *, ids=NAMES, kept=None, values=VALUES, disk=None):
    keys = ShardKeys(ids=ids, first=range(len(ids)), second=range(len(ids)))
    with Scratch(folder, SCHEMA.columns, len(values)) as scratch:
        scratch.put(COLUMN.name, 0, values)
        options = {"origin": ORIGIN, "kept": kept, "disk": disk or UnsyncedDisk()}
        return write_shard(folder, SCHEMA, 2, keys, scratch, **options)


def read(folder):
    return pa.ipc.open_stream((folder / "shard-00002.arrow").read_bytes()).read_all()


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_rows_kept_are_the_rows_of_the_file(tmp_path, monkeypatch, batch_rows):
    monkeypatch.setattr(schema_module, "BATCH_BYTES", batch_rows * SCHEMA.row_bytes)
    kept = np.array([1, 1, 0, 0, 0, 1, 0, 1, 1], dtype=bool)
    record = write(tmp_path, kept=kept)
    table = read(tmp_path)
    assert record.num_rows == table.num_rows == 5
    assert table["id"].to_pylist() == ["a", "a", "b", "b", "b"]
    assert table["pos"].to_pylist() == np.flatnonzero(kept).tolist()
    assert np.stack(table["resid_post.1"].to_numpy()).tolist() == VALUES[kept].tolist()
    assert all(len(chunk) <= batch_rows for chunk in table["pos"].chunks)


@pytest.mark.parametrize("form", [pa.array, lambda names: pa.chunked_array([names]), tuple])
def test_keys_come_in_any_form(tmp_path, form):
    expected = write(tmp_path).sha256
    assert write(tmp_path, ids=form(NAMES)).sha256 == expected


def test_messages_are_what_arrow_itself_writes(tmp_path):
    write(tmp_path)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA.arrow()) as stream:
        stream.write_table(read(tmp_path))
    assert (tmp_path / "shard-00002.arrow").read_bytes() == sink.getvalue().to_pybytes()


def test_nothing_kept_is_a_stream_without_batches(tmp_path):
    record = write(tmp_path, kept=np.zeros(9, dtype=bool))
    assert record.num_rows == 0
    assert read(tmp_path).schema == SCHEMA.arrow()


def test_memory_holds_no_more_than_two_batches(tmp_path, monkeypatch):
    class WatchingDisk(UnsyncedDisk):
        peak = 0

        def write(self, path, file, data):
            self.peak = max(self.peak, pa.total_allocated_bytes())
            super().write(path, file, data)

    batch, disk = 2**20, WatchingDisk()
    monkeypatch.setattr(schema_module, "BATCH_BYTES", batch)
    column = Column(name="logits", dtype="float32", shape=(4096,))
    schema = Schema(level="tokens", columns=(column,))
    keys = ShardKeys(ids=["a"] * 1000, first=range(1000), second=range(1000))
    with Scratch(tmp_path, [column], 1000) as scratch:
        scratch.put("logits", 0, np.ones((1000, 4096), dtype=np.float32))
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        write_shard(tmp_path, schema, 0, keys, scratch, origin=ORIGIN, disk=disk)
        peak = tracemalloc.get_traced_memory()[1] + disk.peak - before
        tracemalloc.stop()
    assert batch < peak < 2.2 * batch


def test_rows_without_values_are_refused(tmp_path):
    keys = ShardKeys(ids=NAMES, first=range(9), second=range(9))
    with (
        Scratch(tmp_path, SCHEMA.columns, 9) as scratch,
        pytest.raises(ValueError, match=r"'resid_post\.1' has no values for row 0"),
    ):
        write_shard(tmp_path, SCHEMA, 0, keys, scratch, origin=ORIGIN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ids", "kept", "fault"),
    [
        (["a"], None, "the shard has 9 rows, got 1"),
        (NAMES, np.ones(8, bool), "the shard has 9 rows, got 8"),
        ([*NAMES[:8], None], None, "have no gaps"),
    ],
)
def test_keys_and_masks_that_do_not_fit_are_refused(tmp_path, ids, kept, fault):
    with pytest.raises(ValueError, match=fault):
        write(tmp_path, ids=ids, kept=kept)


def test_keys_of_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="equal lengths, got 1, 2 and 1"):
        ShardKeys(ids=["a"], first=[1, 2], second=[1])
