import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phiscope.errors import StoreError
from phiscope.store import Column, Scratch

COLUMNS = (
    Column(name="a", dtype="float16", shape=(3,)),
    Column(name="b", dtype="bfloat16", shape=(2, 2)),
    Column(name="c", dtype="float32", shape=()),
)
NUM_ROWS = 20

puts = st.lists(
    st.tuples(st.sampled_from(COLUMNS), st.integers(0, NUM_ROWS), st.integers(0, 6)), max_size=12
)
chosen_rows = st.sets(st.integers(0, NUM_ROWS - 1)).map(sorted)


@pytest.fixture
def scratch(tmp_path):
    with Scratch(tmp_path, COLUMNS, NUM_ROWS) as scratch:
        yield scratch


@settings(max_examples=40, deadline=None)
@given(puts=puts, rows=chosen_rows, seed=st.integers(0, 99))
def test_random_puts_equal_those_into_an_array(tmp_path_factory, puts, rows, seed):
    generator = np.random.default_rng(seed)
    arrays = {c.name: np.zeros((NUM_ROWS, *c.shape), c.numpy_dtype) for c in COLUMNS}
    with Scratch(tmp_path_factory.getbasetemp(), COLUMNS, NUM_ROWS) as scratch:
        for column, first, count in puts:
            count = min(count, NUM_ROWS - first)
            values = generator.integers(0, 99, (count, *column.shape)).astype(column.numpy_dtype)
            scratch.put(column.name, first, values)
            arrays[column.name][first : first + count] = values
        for column in COLUMNS:
            array = arrays[column.name].reshape(NUM_ROWS, column.width)
            np.testing.assert_array_equal(scratch.read(column.name, 0, NUM_ROWS), array)
            np.testing.assert_array_equal(
                scratch.gather(column.name, np.array(rows, int)), array[rows]
            )


def test_flat_and_shaped_rows_are_the_same(scratch):
    values = np.arange(8, dtype=np.uint16)
    scratch.put("b", 0, values.reshape(2, 2, 2))
    scratch.put("b", 2, values.reshape(2, 4))
    np.testing.assert_array_equal(scratch.read("b", 0, 2), scratch.read("b", 2, 4))


def test_rows_that_lie_apart_in_memory_are_put(scratch):
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    scratch.put("a", 0, values.T)
    np.testing.assert_array_equal(scratch.read("a", 0, 4), values.T)


def test_nothing_shows_in_the_folder(tmp_path):
    with Scratch(tmp_path, COLUMNS, NUM_ROWS) as scratch:
        scratch.put("a", 0, np.ones((NUM_ROWS, 3), np.float16))
        assert not list(tmp_path.iterdir())


def test_rows_that_nobody_filled_are_found(scratch):
    for column in COLUMNS:
        scratch.put(column.name, 0, np.ones((NUM_ROWS, *column.shape), column.numpy_dtype))
    scratch.check_filled(np.arange(NUM_ROWS))
    with Scratch(scratch.folder, COLUMNS, NUM_ROWS) as other:
        for column in COLUMNS:
            other.put(column.name, 1, np.ones((9, *column.shape), column.numpy_dtype))
        other.check_filled(np.arange(1, 10))
        with pytest.raises(ValueError, match="column 'a' has no values for row 10 of the shard"):
            other.check_filled(np.arange(5, 12))


@pytest.mark.parametrize(
    ("first", "values", "fault"),
    [
        (0, np.ones((2, 3), np.float32), "'a' holds float16, got float32"),
        (0, np.ones((2, 4), np.float16), r"a row of 'a' is \(3,\), got \(4,\)"),
        (19, np.ones((2, 3), np.float16), "rows 19 to 21 are not within the 20 rows"),
        (-1, np.ones((2, 3), np.float16), "rows -1 to 1 are not within the 20 rows"),
    ],
)
def test_values_that_do_not_fit_are_refused(scratch, first, values, fault):
    with pytest.raises(ValueError, match=fault):
        scratch.put("a", first, values)


def test_fault_54_full_disk_is_named(tmp_path):
    values = np.ones((1, 3), np.float16)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Scratch(tmp_path, COLUMNS, NUM_ROWS) as scratch:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
        try:
            with pytest.raises(StoreError, match=r"make a scratch file in .*: File too large"):
                Scratch(tmp_path, COLUMNS, NUM_ROWS)
            with pytest.raises(StoreError, match=r"write a scratch file in .*: File too large"):
                scratch.put("a", NUM_ROWS - 1, values)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_fault_54_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match=f"scratch file in {tmp_path}/none: No such file"):
        Scratch(tmp_path / "none", COLUMNS, NUM_ROWS)
