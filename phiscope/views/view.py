"""What a store looks like, from a bounded sample of its rows: figures, norms, and a projection."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiscope.store.column import ColumnView
from phiscope.store.reader import Store
from phiscope.views.curves import Curve, find_main_column, trace_layers, trace_positions
from phiscope.views.projection import Projection, project_column
from phiscope.views.sample import RowNumbers, sample_rows

SAMPLE_ROWS = 10_000
_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True)
class ColumnSummary:
    """One column in figures; an empty store has None for them, and whole numbers have no norm."""

    column: str
    dtype: str
    shape: tuple[int, ...]
    num_rows: int
    mean_norm: float | None
    """Of the sampled rows' L2 norms."""
    std_norm: float | None
    least: float | None
    most: float | None
    nonzero: float | None
    """Share of the numbers."""
    clamped: int
    """Numbers that were beyond the dtype's range, in the whole store."""
    error: float | None
    """Relative, as the verification recorded it."""


@dataclass(frozen=True, kw_only=True)
class StoreView:
    """All that is shown of a store."""

    name: str
    level: str
    num_rows: int
    num_sampled: int
    columns: tuple[ColumnSummary, ...]
    by_layer: tuple[Curve, ...]
    by_position: tuple[Curve, ...]
    """Empty where a row is a text."""
    projection: Projection | None

    @property
    def sampling(self) -> str:
        """Which rows the figures come from, in words."""
        unit = "texts" if self.level == "texts" else "tokens"
        if self.num_sampled == self.num_rows:
            return f"all {self.num_rows:,} {unit}"
        return f"{self.num_sampled:,} of {self.num_rows:,} {unit}, evenly spread"


def view_store(
    store: Store,
    *,
    column: str | None = None,
    labels: Mapping[str, str] | None = None,
    max_rows: int = SAMPLE_ROWS,
) -> StoreView:
    """Look at a sample of a store.

    The projection is that of `column`, None: the middle one of the residual stream; `labels` are
    classes of texts by id, for its colours.
    """
    rows = sample_rows(len(store), max_rows)
    norms: dict[str, NDArray[np.float64]] = {}
    summaries = tuple(_summarize(store, name, rows, norms) for name in store.columns)
    main = column or find_main_column(store.columns)
    return StoreView(
        name=store.path.resolve().name,
        level=store.level,
        num_rows=len(store),
        num_sampled=len(rows),
        columns=summaries,
        by_layer=tuple(trace_layers({name: float(each.mean()) for name, each in norms.items()})),
        by_position=tuple(_trace_positions(store, rows, norms)),
        projection=None if main is None else project_column(store, main, labels=labels),
    )


def describe_store(store: Store, max_rows: int = SAMPLE_ROWS) -> list[ColumnSummary]:
    """Each column in figures, from `max_rows` rows at most."""
    rows = sample_rows(len(store), max_rows)
    return [_summarize(store, name, rows, {}) for name in store.columns]


def tabulate(summaries: Sequence[ColumnSummary]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a table; what no column has is left out."""
    cells = [_make_cells(each) for each in summaries]
    header = [name for name in cells[0] if any(row[name] not in ("", "0") for row in cells)]
    return header, [[row[name] or "-" for name in header] for row in cells]


def _make_cells(summary: ColumnSummary) -> dict[str, str]:
    share = summary.nonzero
    return {
        "column": summary.column,
        "dtype": summary.dtype,
        "shape": "x".join(map(str, summary.shape)),
        "rows": f"{summary.num_rows:,}",
        "mean norm": show_number(summary.mean_norm),
        "std": show_number(summary.std_norm),
        "least": show_number(summary.least),
        "most": show_number(summary.most),
        "% nonzero": "" if share is None else f"{math.floor(1000 * share) / 10:.1f}",
        "clamped": f"{summary.clamped:,}",
        "error": show_number(summary.error),
    }


def show_number(value: float | None) -> str:
    """Four digits, as many for every number; nothing for None."""
    return "" if value is None else f"{value:#.4g}".removesuffix(".")


def _summarize(
    store: Store, name: str, rows: RowNumbers, norms: dict[str, NDArray[np.float64]]
) -> ColumnSummary:
    """A column's figures; the norms of its rows are put into `norms`."""
    view = store[name]
    facts = _measure(view, rows) if len(rows) else {}
    if facts and view.column.dtype != "int32":
        norms[name] = facts["norms"]
    known = norms.get(name)
    return ColumnSummary(
        column=name,
        dtype=view.column.dtype,
        shape=view.column.shape,
        num_rows=len(view),
        mean_norm=None if known is None else float(known.mean()),
        std_norm=None if known is None else float(known.std()),
        least=facts.get("least"),
        most=facts.get("most"),
        nonzero=facts.get("nonzero"),
        clamped=int(store.manifest["clamped"].get(name, 0)),
        error=_find_error(store.manifest, name),
    )


def _measure(view: ColumnView, rows: RowNumbers) -> dict[str, Any]:
    """The norms of some rows, and figures of their numbers, a few rows in memory at a time."""
    step = max(1, _NUMBERS_AT_ONCE // view.column.width)
    norms, least, most, nonzero = [], math.inf, -math.inf, 0
    for begin in range(0, len(rows), step):
        x = view.float32(rows[begin : begin + step]).reshape(-1, view.column.width)
        norms.append(np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64)))
        least, most = min(least, float(x.min())), max(most, float(x.max()))
        nonzero += int(np.count_nonzero(x))
    return {
        "norms": np.concatenate(norms),
        "least": least,
        "most": most,
        "nonzero": nonzero / (len(rows) * view.column.width),
    }


def _trace_positions(
    store: Store, rows: RowNumbers, norms: Mapping[str, NDArray[np.float64]]
) -> list[Curve]:
    if store.level == "texts" or not norms:
        return []
    return trace_positions(norms, store["pos"][rows])


def _find_error(manifest: Mapping[str, Any], column: str) -> float | None:
    columns = (manifest["verification"] or {}).get("columns", {})
    error: float | None = columns.get(column, {}).get("max_rel")
    return error
