"""What Python holds: lists and iterators of texts, token ids or columns, arrays, and datasets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from numbers import Integral
from operator import getitem
from typing import Any

import numpy as np
import pyarrow as pa

from phiscope.extraction.inputs.fields import list_names
from phiscope.extraction.inputs.sources import Reader, Unread
from phiscope.extraction.inputs.tables import read_frame


def read_iterable(data: Any) -> Reader:
    """`TypeError` for what holds no rows, or would silently give others than meant."""
    if isinstance(data, Mapping):
        raise TypeError(f"a mapping is no list of rows; give one of {list_names(data)}")
    if isinstance(data, pa.RecordBatchReader) or _is_frame(data):
        return read_frame(data)
    if hasattr(data, "__array__"):
        data = _check_array(np.asarray(data))
    if not isinstance(data, Iterable) or isinstance(data, bytes | bytearray):
        raise TypeError(f"rows come from a path, an iterable or a table, not {type(data).__name__}")
    return _read_sequence(data) if _is_indexed(data) else _read_items(data)


def _is_frame(data: object) -> bool:
    return hasattr(data, "__arrow_c_stream__") and hasattr(data, "columns")


def _is_indexed(data: object) -> bool:
    """Whether rows can be had by number, so that passing over them does not decode them."""
    is_dataset = hasattr(data, "column_names") and hasattr(data, "__len__")
    return is_dataset or isinstance(data, Sequence | np.ndarray)


def _check_array(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array of token ids (rows, tokens), or of objects such as strings (rows,)."""
    are_ids = array.ndim == 2 and array.dtype.kind in "iu"
    are_objects = array.ndim == 1 and array.dtype.kind in "OUST"
    if are_ids or are_objects:
        return array
    raise TypeError(
        f"an array of rows is integers (rows, tokens), got {array.dtype} {array.shape};"
        " one text alone goes into a list"
    )


def _read_sequence(data: Any) -> Reader:
    if len(data) and isinstance(data[0], Integral):
        raise TypeError("the rows are integers; the token ids of one text go into a list: [ids]")

    def open_at(start: int, _: Sequence[str]) -> Iterator[Unread]:
        return (partial(getitem, data, index) for index in range(start, len(data)))

    return Reader(open=open_at, count=lambda: len(data))


def _read_items(data: Any) -> Reader:
    def open_at(start: int, _: Sequence[str]) -> Iterator[Unread]:
        return (partial(_give, item) for item in islice(data, start, None))

    count = (lambda: len(data)) if hasattr(data, "__len__") else None
    return Reader(open=open_at, count=count, repeatable=not isinstance(data, Iterator))


def _give(item: object) -> object:
    return item
