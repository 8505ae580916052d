"""Collecting: what forwards give, in any order, becomes the rows of a shard's columns.

Rows of tokens are written where they belong at once. Parts of pooled rows wait until the text's
last piece has come; only texts of several pieces wait.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phiscope.activations.keeping import Keep, Kept, keep_rows
from phiscope.extraction.options import DTYPES
from phiscope.extraction.pieces import Piece, Read, Text
from phiscope.extraction.readings import Reading
from phiscope.extraction.reducing import JOINS


class Sink(Protocol):
    """Takes the rows of columns, in any order."""

    def put(self, column: str, first_row: int, values: NDArray[Any]) -> None:
        """Rows (n, width) of a column, from this row on."""


class Collector:
    """The states of one shard's texts on their way to a sink; `faults` names those with none."""

    def __init__(self, texts: Sequence[Text], sink: Sink) -> None:
        self.texts = texts
        self.sink = sink
        self.faults: dict[int, str] = {}
        """Number of a text -> why it has no rows."""
        self.clamped: Counter[tuple[int, str]] = Counter()
        """(text, column) -> values beyond the kept dtype."""
        self._expected: Counter[int] = Counter()
        self._parts: dict[tuple[int, str], dict[int, Tensor]] = defaultdict(dict)

    def expect(self, pieces: Sequence[Piece]) -> None:
        """Be told of pieces that will come, before any of their texts is complete."""
        for piece in pieces:
            for read in piece.reads:
                self._expected.update(read.owners)

    def take_rows(self, reading: Reading, reads: Sequence[Read], kept: Kept) -> None:
        """Rows of tokens, those of each read as sequence i of `kept`."""
        values = _as_numpy(kept.values)
        for number, read in enumerate(reads):
            span = kept.spans[number]
            fault = _find_fault(kept, span)
            for owner in read.owners:
                self._note(owner, reading, kept.clamped[span], fault)
                self.sink.put(
                    reading.column.name, self.texts[owner].first + read.order, values[span]
                )

    def take_parts(self, reading: Reading, reads: Sequence[Read], parts: Tensor) -> None:
        """Parts (R, width) on the CPU, one for each read."""
        complete: list[int] = []
        name = reading.column.name
        for read, part in zip(reads, parts, strict=True):
            for owner in read.owners:
                waiting = self._parts[owner, name]
                waiting[read.order] = part
                if len(waiting) == self._expected[owner]:
                    complete.append(owner)
        if complete:
            self._put_pooled(reading, complete)

    def _put_pooled(self, reading: Reading, owners: Sequence[int]) -> None:
        rows = torch.stack([self._join(reading, owner) for owner in owners])
        dtype = DTYPES.get(reading.column.dtype, torch.int32)
        if dtype == torch.int32:
            return self._put_each(reading, owners, rows.to(dtype))
        spans = {i: slice(i, i + 1) for i in range(len(owners))}
        kept = keep_rows(rows, spans, Keep(dtype=dtype, overflow="clamp"))
        for number, owner in enumerate(owners):
            span = kept.spans[number]
            self._note(owner, reading, kept.clamped[span], _find_fault(kept, span))
        return self._put_each(reading, owners, kept.values)

    def _join(self, reading: Reading, owner: int) -> Tensor:
        parts = self._parts.pop((owner, reading.column.name))
        assert reading.reducer is not None, "parts are of pooled readings"
        ordered = [parts[order] for order in sorted(parts)]
        return JOINS[reading.reducer](ordered, len(self.texts[owner].positions))

    def _put_each(self, reading: Reading, owners: Sequence[int], rows: Tensor) -> None:
        values = _as_numpy(rows)
        for number, owner in enumerate(owners):
            self.sink.put(reading.column.name, owner, values[number : number + 1])

    def _note(self, owner: int, reading: Reading, clamped: Tensor, fault: str | None) -> None:
        if fault is not None:
            self.faults.setdefault(owner, f"{reading.column.name} {fault}")
        count = int(clamped.sum())
        if count:
            self.clamped[owner, reading.column.name] += count


def _find_fault(kept: Kept, span: slice) -> str | None:
    return None if bool(kept.peaks[span].isfinite().all()) else "has a NaN or an infinity"


def _as_numpy(values: Tensor) -> NDArray[Any]:
    """Rows (n, width) for numpy, which does not know bfloat16 and gets its bits."""
    flat = values.flatten(1)
    if flat.dtype == torch.bfloat16:
        return flat.view(torch.int16).numpy().view(np.uint16)
    return flat.numpy()
