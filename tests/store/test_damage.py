"""Stores that are unfinished, cut or changed: an error that names the file, never a SIGBUS."""

import json
import os
from contextlib import suppress

import pyarrow as pa
import pytest
from store.faulty_disk import UnsyncedDisk
from store.small_job import open_writer, write_shard, write_store

from phiscope.errors import StoreError
from phiscope.store import open_store

SHARD = "data-00001-of-00003.arrow"


@pytest.fixture
def folder(tmp_path):
    write_store(tmp_path / "store", UnsyncedDisk())
    return tmp_path / "store"


def change_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"is no store, as it has no manifest\.json"):
        open_store(tmp_path)


def test_unfinished_store_is_refused(tmp_path):
    with open_writer(tmp_path / "store", UnsyncedDisk()) as writer:
        write_shard(writer, 0)
    with pytest.raises(StoreError, match="is an unfinished store; resume its job"):
        open_store(tmp_path / "store")


@pytest.mark.parametrize("size", [0, 8, 500])
def test_shard_that_was_cut_is_refused_before_it_is_mapped(folder, size):
    os.truncate(folder / SHARD, size)
    with pytest.raises(StoreError, match=rf"{SHARD} is damaged: it has {size} bytes of"):
        open_store(folder)


def test_missing_shard_is_named(folder):
    (folder / SHARD).unlink()
    with pytest.raises(StoreError, match=f"cannot read .*{SHARD}: No such file"):
        open_store(folder)


def test_flipped_byte_is_found_by_check_and_never_kills_a_reader(folder):
    path = folder / SHARD
    data = path.read_bytes()
    for place in range(0, len(data), 11):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
        store = open_store(folder)
        assert store.check() == [f"{path} is not what was written: its sha256 differs"]
        with suppress(StoreError):
            assert len(store.ids) == len(store)
            assert store["z.1.last"].numpy().shape == (9, 2, 3)


def test_shard_with_other_rows_is_refused(folder):
    path = folder / SHARD
    table = pa.ipc.open_stream(path.read_bytes()).read_all().slice(1)
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][1]["bytes"] = path.stat().st_size
    change_manifest(folder, shards=manifest["shards"])
    with pytest.raises(StoreError, match=f"{SHARD} has other columns or rows than the manifest"):
        open_store(folder).table()


def test_check_reports_every_shard(folder):
    store = open_store(folder)
    (folder / SHARD).unlink()
    os.truncate(folder / "data-00002-of-00003.arrow", 10)
    faults = store.check()
    assert len(faults) == 2
    assert SHARD in faults[0]
    assert "is damaged: it has 10 bytes" in faults[1]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "phiscope-store", "version": 2}', '{"a": NaN}']
)
def test_manifest_that_cannot_be_read_is_named(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"manifest\.json"):
        open_store(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": 3},
        {"level": "words"},
        {"shards": [{}]},
        {"shard_size": 0},
        {"job": 1},
        {"batch_rows": 0},
    ],
)
def test_manifest_with_other_contents_is_refused(folder, changes):
    change_manifest(folder, **changes)
    with pytest.raises(StoreError):
        open_store(folder)


def test_damaged_errors_are_named(folder):
    (folder / "errors.jsonl").write_text("{")
    with pytest.raises(StoreError, match=r"errors\.jsonl is damaged"):
        open_store(folder).errors  # noqa: B018
