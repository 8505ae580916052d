"""Projections: the rows of a column on their first two principal components."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phiscope.store.reader import Store
from phiscope.views.sample import RowNumbers, find_ids, sample_rows

PCA_ROWS = 1_000
"""As many points as a scatter plot shows one by one, and a decomposition takes a second for."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Rows on the two directions in which they vary most."""

    column: str
    coordinates: Floats  # (n, 2)
    shares: tuple[float, float]
    """Of the variance."""
    sampling: str
    """Which rows these are, in words."""
    labels: tuple[str | None, ...] = ()
    """The classes of the rows; empty: there are none."""

    @property
    def all_labels(self) -> tuple[str | None, ...]:
        return self.labels or (None,) * len(self.coordinates)


def project_column(
    store: Store,
    column: str,
    *,
    labels: Mapping[str, str] | None = None,
    max_rows: int = PCA_ROWS,
) -> Projection | None:
    """The principal components of a sample of rows; None if there are fewer than three.

    The first token of a text is left out where a row is a token: its norm is so large that nothing
    else would be seen. `labels` are classes of texts by id. A component's sign makes its largest
    loading positive, so the same rows give the same picture.
    """
    view, rows = store[column], _sample(store, max_rows)
    if len(rows) < 3 or view.column.width < 2:
        return None
    x = view.float32(rows).reshape(len(rows), -1).astype(np.float64)
    coordinates, shares = find_components(x)
    named = [labels.get(name) for name in find_ids(store, rows)] if labels else []
    words = "texts" if store.level == "texts" else "tokens, none the first of its text"
    return Projection(
        column=column,
        coordinates=coordinates,
        shares=shares,
        sampling=f"{len(rows):,} {words}",
        labels=tuple(named),
    )


def find_components(x: Floats) -> tuple[Floats, tuple[float, float]]:
    """Rows (n, width) on their first two principal components (n, 2), and the variance's shares.

    From the eigenvectors of the smaller of the two products of the centred rows with themselves.
    """
    x = x - x.mean(axis=0)
    wide = x.shape[1] > x.shape[0]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    top = vectors[:, :-3:-1]
    loadings = x.T @ top if wide else top
    peaks = np.abs(loadings).argmax(axis=0)
    loadings = loadings * np.where(loadings[peaks, [0, 1]] < 0, -1, 1)
    lengths = np.linalg.norm(loadings, axis=0)
    coordinates = x @ (loadings / np.where(lengths == 0, 1, lengths))
    total = max(float(values.clip(0).sum()), np.finfo(np.float64).tiny)
    first, second = (values[:-3:-1].clip(0) / total).tolist()
    return coordinates, (first, second)


def _sample(store: Store, max_rows: int) -> RowNumbers:
    rows = sample_rows(len(store), max_rows)
    return rows if store.level == "texts" else rows[store["pos"][rows] > 0]
