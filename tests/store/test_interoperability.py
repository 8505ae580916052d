"""A finished store opens in other libraries, without conversion."""

import numpy as np
import pyarrow as pa
import pytest
from store.faulty_disk import UnsyncedDisk
from store.small_job import BAD_ROW, NUM_SHARDS, STATES, open_writer, write_store

from phiscope.store import open_store

KEPT = [row for row in range(10) if row != BAD_ROW]
HALVES, BITS = STATES["resid_post.1.mean"][KEPT], STATES["z.1.last"][KEPT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "store"
    write_store(folder, UnsyncedDisk())
    return folder


def paths(folder):
    return [folder / f"data-{k:05d}-of-{NUM_SHARDS:05d}.arrow" for k in range(NUM_SHARDS)]


def test_datasets_opens_the_folder_and_float16_stays(folder):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.load_from_disk(str(folder))
    assert dataset["id"][:] == [f"text-{row}" for row in KEPT]
    assert dataset.features["resid_post.1.mean"].feature.dtype == "float16"
    halves = dataset.with_format("numpy", dtype=np.float16)["resid_post.1.mean"][:]
    assert halves.dtype == np.float16
    np.testing.assert_array_equal(halves, HALVES)
    bits = dataset.with_format("numpy", dtype=np.uint16)["z.1.last"][:]
    np.testing.assert_array_equal(bits.reshape(BITS.shape), BITS)


def test_datasets_maps_the_files_and_does_not_copy_them(folder):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.load_from_disk(str(folder), keep_in_memory=False)
    assert [file["filename"] for file in dataset.cache_files] == [str(p) for p in paths(folder)]


def test_datasets_opens_a_store_without_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    with open_writer(tmp_path / "store", UnsyncedDisk()) as writer:
        writer.finish()
    assert datasets.load_from_disk(str(tmp_path / "store")).num_rows == 0


def test_pyarrow_opens_each_file(folder):
    tables = [pa.ipc.open_stream(pa.memory_map(str(path))).read_all() for path in paths(folder)]
    table = pa.concat_tables(tables)
    values = table["resid_post.1.mean"].combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(values.reshape(HALVES.shape), HALVES)
    assert table.column_names[:3] == ["id", "num_tokens", "text_sha256"]


def test_polars_opens_each_file(folder):
    polars = pytest.importorskip("polars")
    frame = polars.concat([polars.read_ipc_stream(path) for path in paths(folder)])
    assert frame["id"].to_list() == [f"text-{row}" for row in KEPT]
    np.testing.assert_array_equal(frame["resid_post.1.mean"].to_numpy(), HALVES)
    np.testing.assert_array_equal(frame["z.1.last"].to_numpy().reshape(BITS.shape), BITS)


def test_numpy_maps_the_rows_where_locate_says(folder):
    for name, values in (("resid_post.1.mean", HALVES), ("z.1.last", BITS)):
        spans = open_store(folder).locate(name)
        maps = [np.memmap(p, dtype, "r", offset, shape) for p, offset, dtype, shape in spans]
        np.testing.assert_array_equal(np.concatenate(maps), values)
