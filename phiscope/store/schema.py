"""What a store's table looks like: the leading columns of its level, then one column per point.

A row of a column is stored flat, as a list of fixed size; its shape is kept beside it. bfloat16,
which Arrow and numpy do not know, is stored as the uint16 of the same bits.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from phiscope.errors import StoreError

BATCH_BYTES = 32_000_000
"""The most that a record batch holds, the letters of its ids not counted."""

Level = Literal["texts", "tokens"]

DTYPES: dict[str, tuple[type[np.generic], pa.DataType]] = {
    "float16": (np.float16, pa.float16()),
    "float32": (np.float32, pa.float32()),
    "bfloat16": (np.uint16, pa.uint16()),
    "int32": (np.int32, pa.int32()),
}

KEYS: dict[str, tuple[tuple[str, pa.DataType], ...]] = {
    "texts": (("id", pa.string()), ("num_tokens", pa.int32()), ("text_sha256", pa.string())),
    "tokens": (("id", pa.string()), ("pos", pa.int32()), ("token_id", pa.int32())),
}
_KEY_BYTES = {"texts": 3 * 4 + 64, "tokens": 3 * 4}  # without the letters of the id


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of states: `<point>` or `<point>.<reducer>`, one array per row."""

    name: str
    dtype: str
    """float16, float32, bfloat16 or int32."""
    shape: tuple[int, ...]
    """Of one row."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"no column dtype {self.dtype!r}; choose from {', '.join(DTYPES)}")
        if not self.name or any(size < 1 for size in self.shape):
            raise ValueError(f"a column needs a name and sizes from 1, got {self}")

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape)

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype(DTYPES[self.dtype][0])

    @property
    def row_bytes(self) -> int:
        return self.width * self.numpy_dtype.itemsize

    def arrow(self) -> pa.Field:
        metadata = {"dtype": self.dtype, "shape": json.dumps(self.shape)}
        return pa.field(self.name, pa.list_(DTYPES[self.dtype][1], self.width), metadata=metadata)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The columns of a store; `texts` has one row per text, `tokens` one per token."""

    level: Level
    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        if self.level not in KEYS:
            raise ValueError(f"a level is texts or tokens, not {self.level!r}")
        names = [*(name for name, _ in KEYS[self.level]), *(c.name for c in self.columns)]
        if len(set(names)) != len(names):
            raise ValueError(f"columns need names of their own, got {', '.join(names)}")

    @property
    def row_bytes(self) -> int:
        """Bytes of a row on the disk, the letters of its id not counted."""
        return _KEY_BYTES[self.level] + sum(column.row_bytes for column in self.columns)

    @property
    def batch_rows(self) -> int:
        """Rows of a record batch."""
        return max(1, BATCH_BYTES // self.row_bytes)

    def arrow(self) -> pa.Schema:
        keys = [pa.field(name, kind) for name, kind in KEYS[self.level]]
        return pa.schema([*keys, *(column.arrow() for column in self.columns)])

    def to_json(self) -> dict[str, Any]:
        return {"level": self.level, "columns": [column.to_json() for column in self.columns]}


def read_schema(value: Mapping[str, Any]) -> Schema:
    """The schema that `to_json` wrote; `StoreError` if it is none."""
    try:
        columns = tuple(
            Column(name=str(entry["name"]), dtype=entry["dtype"], shape=tuple(entry["shape"]))
            for entry in value["columns"]
        )
        return Schema(level=value["level"], columns=columns)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"these are no columns of a store: {error}") from error
