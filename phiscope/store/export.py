"""Exports of a store: its columns as one .safetensors file, or one column as a .npy file.

Rows are copied record batch by record batch, so a store may be larger than the memory.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from phiscope.errors import StoreError
from phiscope.store.column import ColumnView, widen
from phiscope.store.disk import Disk
from phiscope.store.index import name_choices
from phiscope.store.reader import Store
from phiscope.store.tensor_file import TensorEntry, write_tensor_file, write_whole

_DTYPES = {"float16": "F16", "float32": "F32", "bfloat16": "BF16", "int32": "I32"}


def export_safetensors(
    store: Store, out: Path, points: Iterable[str] | None = None, disk: Disk | None = None
) -> None:
    """Write columns, or all columns of points, as a .safetensors file; None: all there are.

    One row per text (n texts): a tensor (n, *shape) named after each column, and `num_tokens` (n,).
    One row per token (n tokens of m texts): `hidden_states` (n, *shape), of several columns
    (columns, n, *shape), or a tensor named after each column if their shapes or dtypes differ;
    `token_ids` (n,), `positions` (n,), and `offsets` (m + 1,), where each text begins and ends.
    The metadata has, as JSON, the `columns` in order, the `ids` of the texts and the store's `job`.
    """
    names = select_columns(store, points)
    make_entries = _enter_texts if store.level == "texts" else _enter_tokens
    facts = {"columns": names, "ids": store.ids, "job": store.manifest["job"]}
    metadata = {"format": "pt", "level": store.level}  # transformers wants a format
    metadata |= {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}
    write_tensor_file(out, make_entries(store, names), metadata, disk)


def export_npy(store: Store, column: str, out: Path, disk: Disk | None = None) -> None:
    """Write a column (n, *shape) as a .npy file; bfloat16, which numpy lacks, as float32."""
    view = store[column]
    dtype = np.dtype(np.float32) if view.column.dtype == "bfloat16" else view.dtype
    header = io.BytesIO()
    facts = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": view.shape,
    }
    np.lib.format.write_array_header_1_0(header, facts)
    with write_whole(out, disk) as write:
        write(header.getvalue())
        for chunk in view.chunks():
            numbers = chunk if dtype == view.dtype else widen(chunk, view.column.dtype)
            write(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8))


def select_columns(store: Store, points: Iterable[str] | None = None) -> list[str]:
    """The columns that are named, or of points that are; `StoreError` for a name of none."""
    if points is None:
        return list(store.columns)
    chosen: dict[str, None] = {}
    for name in points:
        found = [each for each in store.columns if each == name or each.startswith(f"{name}.")]
        if not found:
            hint = name_choices(name, store.columns)
            raise StoreError(f"no column of {name!r} in {store.path}; {hint}")
        chosen |= dict.fromkeys(found)
    if not chosen:
        raise ValueError("no columns were named; name some, or leave it out for all")
    return list(chosen)


def _enter_texts(store: Store, names: Sequence[str]) -> dict[str, TensorEntry]:
    return {name: _enter(store[name]) for name in (*names, "num_tokens")}


def _enter_tokens(store: Store, names: Sequence[str]) -> dict[str, TensorEntry]:
    starts = _find_starts(store)
    return {
        **_enter_states([store[name] for name in names]),
        "token_ids": _enter(store["token_id"]),
        "positions": _enter(store["pos"]),
        "offsets": TensorEntry("I64", starts.shape, [starts]),
    }


def _enter_states(views: Sequence[ColumnView]) -> dict[str, TensorEntry]:
    kinds = {(view.column.dtype, view.shape) for view in views}
    if len(kinds) > 1:
        return {view.column.name: _enter(view) for view in views}
    first = views[0]
    shape = first.shape if len(views) == 1 else (len(views), *first.shape)
    return {"hidden_states": TensorEntry(_DTYPES[first.column.dtype], shape, _join_chunks(views))}


def _enter(view: ColumnView) -> TensorEntry:
    return TensorEntry(_DTYPES[view.column.dtype], view.shape, view.chunks())


def _join_chunks(views: Sequence[ColumnView]) -> Iterator[NDArray[Any]]:
    return (chunk for view in views for chunk in view.chunks())


def _find_starts(store: Store) -> NDArray[np.int64]:
    """The first row of each text, and the number of rows (texts + 1,)."""
    ids = store.table()["id"]
    if len(ids) == 0:
        return np.zeros(1, dtype=np.int64)
    differ = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy()
    begins = np.append(True, differ | (np.diff(store["pos"].numpy()) <= 0))
    return np.append(np.flatnonzero(begins), len(ids)).astype(np.int64)
