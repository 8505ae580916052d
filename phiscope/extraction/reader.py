"""RowReader: the plan of one forward of an extraction, which reads rows and hands them on.

It implements `outputs.Plan`. Of each point only the rows that some text wants are touched; they are
pooled where they lie, and what is left goes to the collector: on a CPU at once, from a GPU when the
forward is done, so that copies go on while it computes.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from phiscope.activations.keeping import Keep, Kept, keep_rows
from phiscope.activations.points import Place
from phiscope.activations.summaries import SUMMARIES
from phiscope.extraction.collecting import Collector
from phiscope.extraction.options import DTYPES
from phiscope.extraction.pieces import Piece, Read
from phiscope.extraction.readings import Reading, find_depth
from phiscope.extraction.reducing import PARTS
from phiscope.outputs import Plan
from phiscope.packing import Packed

Head = Callable[[Tensor], Tensor]
_HEAD_ROWS = 256
"""Rows whose logits are in memory at once."""


class RowReader:
    """Reads `readings` of the pieces of one packed batch; `edits` are applied before."""

    def __init__(
        self,
        packed: Packed,
        pieces: Sequence[Piece],
        readings: Sequence[Reading],
        collector: Collector,
        head: Head,
        edits: Plan | None = None,
        token_ids: Sequence[int] = (),
    ) -> None:
        self.depth = find_depth(tuple(readings))
        self._packed = packed
        self._collector = collector
        self._head = head
        self._edits = edits
        self._token_ids = list(token_ids)
        self._reads, self._rows = _find_rows(packed, pieces)
        lengths = [len(read.rows) for read in self._reads]
        device = packed.positions.device
        self._spans = {i: slice(*span) for i, span in enumerate(_borders(lengths))}
        self._lengths = torch.tensor(lengths, device=device)
        self._orders = torch.tensor([read.order for read in self._reads], device=device)
        self._by_place: dict[Place, list[Reading]] = defaultdict(list)
        for reading in readings if self._reads else ():
            self._by_place[reading.place].append(reading)
        self._summaries: list[dict[str, Tensor]] = []
        self._pending: list[tuple[Reading, Kept]] = []

    def wants_maps(self, layer: int) -> bool:
        """Whether a summary of this layer's attention maps is read, or a map edited."""
        wanted = ("attn_probs", layer) in self._by_place
        return wanted or (self._edits is not None and self._edits.wants_maps(layer))

    def wants(self, name: str, layer: int | None = None) -> bool:
        """Whether this point is read or edited."""
        is_edited = self._edits is not None and self._edits.wants(name, layer)
        return is_edited or (name, layer) in self._by_place

    def changes(self, name: str, layer: int | None = None) -> bool:
        """Whether this point is edited."""
        return self._edits is not None and self._edits.changes(name, layer)

    def at(self, name: str, layer: int | None, x: Tensor, sequence: int | None = None) -> Tensor:
        """Let edits change a point, then read it if it is wanted."""
        if self._edits is not None:
            x = self._edits.at(name, layer, x, sequence)
        readings = self._by_place.get((name, layer))
        if readings is None:
            return x
        if sequence is None:
            self._read(readings, self._choose(x))
        else:
            self._read_map(readings, x, sequence)
        return x

    def finish(self) -> None:
        """Hand on what was still being copied when the forward ended."""
        for reading, kept in self._pending:
            self._hand_on(reading, kept)
        self._pending.clear()

    def _choose(self, x: Tensor) -> Tensor:
        return x if self._rows is None else x.index_select(0, self._rows)

    def _read_map(self, readings: Sequence[Reading], probs: Tensor, sequence: int) -> None:
        """Sum up each sequence's map as it comes, and read all of them with the last."""
        names = dict.fromkeys(reading.point.name for reading in readings)
        self._summaries.append({name: SUMMARIES[name](probs) for name in names})
        if sequence < self._packed.num_sequences - 1:
            return
        for name in names:
            x = torch.cat([summary[name] for summary in self._summaries])
            self._read([r for r in readings if r.point.name == name], self._choose(x))
        self._summaries.clear()

    def _read(self, readings: Sequence[Reading], rows: Tensor) -> None:
        """Keep chosen rows (M, ...) as each reading wants them."""
        for reading in readings:
            if reading.part is None:
                self._keep(reading, self._pool(reading, rows))
        self._read_logits([r for r in readings if r.part is not None], rows)

    def _pool(self, reading: Reading, rows: Tensor) -> Tensor:
        if reading.reducer is None:
            return rows
        return PARTS[reading.reducer](rows.flatten(1), self._lengths, self._orders)

    def _read_logits(self, readings: Sequence[Reading], rows: Tensor) -> None:
        """The head sees the rows that are kept, a few at a time, and their logits are dropped."""
        for reducer in dict.fromkeys(reading.reducer for reading in readings):
            some = [reading for reading in readings if reading.reducer == reducer]
            blocks = [self._sum_up(self._head(b)) for b in self._pool_rows(some[0], rows)]
            for reading in some:
                assert reading.part is not None, "only logits have parts"
                self._keep(reading, torch.cat([block[reading.part] for block in blocks]))

    def _pool_rows(self, reading: Reading, rows: Tensor) -> Sequence[Tensor]:
        return torch.split(self._pool(reading, rows).to(rows.dtype), _HEAD_ROWS)

    def _sum_up(self, logits: Tensor) -> dict[str, Tensor]:
        """What is kept of logits (n, vocab); which columns there are says the reading."""
        parts = {"logsumexp": logits.logsumexp(dim=-1, keepdim=True)}
        if self._token_ids:
            return {**parts, "values": logits[:, self._token_ids]}
        width = max(r.column.width for r in self._by_place["final_norm", None] if r.part)
        top = logits.topk(width, dim=-1)
        return {**parts, "top_values": top.values, "top_ids": top.indices.int()}

    def _keep(self, reading: Reading, values: Tensor) -> None:
        kept = keep_rows(values, self._kept_spans(reading), _how(reading))
        if kept.copied is None:
            self._hand_on(reading, kept)
        else:
            self._pending.append((reading, kept))

    def _kept_spans(self, reading: Reading) -> dict[int, slice]:
        return self._spans if reading.reducer is None else {}

    def _hand_on(self, reading: Reading, kept: Kept) -> None:
        kept.wait()
        if reading.reducer is None:
            self._collector.take_rows(reading, self._reads, kept)
        else:
            self._collector.take_parts(reading, self._reads, kept.values)


def _find_rows(packed: Packed, pieces: Sequence[Piece]) -> tuple[list[Read], Tensor | None]:
    """All reads, and the flat rows they want one after the other; None: all rows as they lie."""
    places = zip(packed.offsets, pieces, strict=False)
    found = [(read, read.rows + offset) for offset, piece in places for read in piece.reads]
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *(rows for _, rows in found)])
    reads = [read for read, _ in found]
    if len(rows) == packed.num_tokens and bool((rows == np.arange(len(rows))).all()):
        return reads, None
    return reads, torch.from_numpy(rows).to(packed.positions.device)


def _borders(lengths: Sequence[int]) -> list[tuple[int, int]]:
    ends = list(accumulate(lengths))
    return list(zip(chain([0], ends), ends, strict=False))


def _how(reading: Reading) -> Keep:
    """Rows of tokens in their final dtype, parts in fp32, indices as they are."""
    if reading.column.dtype == "int32":
        return Keep(dtype=None)
    if reading.reducer is not None:
        return Keep(dtype=torch.float32)
    return Keep(dtype=DTYPES[reading.column.dtype], overflow="clamp")
