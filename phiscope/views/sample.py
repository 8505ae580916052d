"""Samples of a store's rows, spread evenly over it."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phiscope.store.reader import Store

RowNumbers = NDArray[np.int64]


def sample_rows(num_rows: int, max_rows: int) -> RowNumbers:
    """All rows, or one row of each of `max_rows` equal stretches; ascending.

    Which row of a stretch is drawn, with a fixed seed: a fixed step would meet the same position
    of every text where all texts have one length.
    """
    if max_rows < 1:
        raise ValueError(f"a sample has at least one row, got {max_rows}")
    if num_rows <= max_rows:
        return np.arange(num_rows)
    borders = np.linspace(0, num_rows, max_rows + 1).astype(np.int64)
    return np.random.default_rng(0).integers(borders[:-1], borders[1:])


def find_ids(store: Store, rows: RowNumbers) -> list[str]:
    """The id of the text to which each row belongs."""
    ids: list[str] = store.table()["id"].take(pa.array(rows)).to_pylist()
    return ids
