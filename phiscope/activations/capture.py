"""CapturePlan: what one forward keeps, pools and changes at its points, per sequence.

A plan belongs to one packed batch and is used once. It implements `outputs.Plan`: the model shows
it every point, and nothing is set on the model or has to be restored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from phiscope.activations.edits import Edit
from phiscope.activations.inspection import Inspection
from phiscope.activations.keeping import Keep, Kept, keep_rows
from phiscope.activations.points import POINTS, Place, Point
from phiscope.activations.pooling import pool
from phiscope.activations.summaries import SUMMARIES
from phiscope.errors import PointError
from phiscope.packing import Packed


@dataclass(frozen=True)
class _Stop:
    """The sequences that want something of one place."""

    readers: list[int] = field(default_factory=list)
    edits: dict[int, list[Edit]] = field(default_factory=dict)


class CapturePlan:
    """Serves one `Inspection` for each sequence of a forward over `packed`.

    The forward stops as early as the points allow, unless `whole` or no point is wanted.
    `logit_rows` are the tokens (ascending) whose logits that forward computes, if not all.
    """

    def __init__(
        self,
        packed: Packed,
        inspections: Sequence[Inspection],
        *,
        keep: Keep | None = None,
        whole: bool = False,
        logit_rows: Sequence[int] | None = None,
    ) -> None:
        if len(inspections) != packed.num_sequences:
            raise ValueError(f"{packed.num_sequences} sequences, {len(inspections)} inspections")
        self.packed = packed
        self.inspections = tuple(inspections)
        self.keep = keep or Keep()
        self.logit_rows = logit_rows
        self.depth = None if whole else _depth(self.inspections)
        self._stops = _arrange(self.inspections)
        self._map_layers = {layer for name, layer in self._stops if POINTS[name].shape == "map"}
        self._kept: dict[tuple[Place, str | int | None], Kept] = {}
        self._check_pooling()

    def wants_maps(self, layer: int) -> bool:
        """Whether this layer's attention maps are read or changed by any sequence."""
        return layer in self._map_layers

    def wants(self, name: str, layer: int | None = None) -> bool:
        """Whether any sequence reads or changes this point."""
        return (name, layer) in self._stops

    def changes(self, name: str, layer: int | None = None) -> bool:
        """Whether any sequence changes this point."""
        stop = self._stops.get((name, layer))
        return stop is not None and bool(stop.edits)

    def at(self, name: str, layer: int | None, x: Tensor, sequence: int | None = None) -> Tensor:
        """Change and keep what is asked for at a point; elsewhere pass x on."""
        stop = self._stops.get((name, layer))
        if stop is None:
            return x
        if sequence is not None:
            return self._visit_map((name, layer), stop, x, sequence)
        return self._visit((name, layer), stop, x)

    def rows(self, sequence: int) -> dict[str, Tensor]:
        """One sequence's rows (T, ...) at each of its points, maps (heads, T, K), as copies.

        Raises `NonFiniteError` for NaN, infinities and values beyond the kept dtype.
        """
        self._refuse(pooled=True)
        points = self.inspections[sequence].points
        return {str(point): self._rows_of(point, sequence) for point in points}

    def pooled(self) -> dict[tuple[str, str], Tensor]:
        """(S, ...) for each point and reducer, in the order of the sequences; raises as `rows`."""
        self._refuse(pooled=False)
        return {
            (str(point), reducer): self._find(point, reducer=reducer).all(point)
            for point in self.inspections[0].points
            for reducer in self.keep.reducers
        }

    def flat(self) -> dict[str, Tensor]:
        """All tokens' rows (N, ...) at each point that every sequence wants; raises as `rows`.

        These are what the plan keeps, not copied again, and maps are left out.
        """
        self._refuse(pooled=True)
        points = self.inspections[0].points
        shared = set(points).intersection(*(i.points for i in self.inspections))
        flat = [p for p in points if p in shared and not _comes_from_maps(p)]
        return {str(point): self._find(point).all(point) for point in flat}

    def clamped(self, sequence: int) -> dict[str, int]:
        """How many of a sequence's values at each point were beyond the kept dtype."""
        return {
            str(point): sum(
                self._find(point, sequence, reducer).count_clamped(sequence)
                for reducer in self.keep.reducers or (None,)
            )
            for point in self.inspections[sequence].points
        }

    def _rows_of(self, point: Point, sequence: int) -> Tensor:
        rows = self._find(point, sequence).of(point, sequence)
        return SUMMARIES[point.name](rows) if point.is_summary else rows

    def _refuse(self, *, pooled: bool) -> None:
        if bool(self.keep.reducers) == pooled:
            pools, other = ("pools", "pooled()") if pooled else ("keeps rows of", "rows()")
            raise ValueError(f"this plan {pools} its sequences: read {other}")

    def _visit(self, place: Place, stop: _Stop, x: Tensor) -> Tensor:
        spans = self._spans(place[0], len(x))
        if stop.edits:
            x = self._edited(place[0], stop, x, spans)
        if stop.readers:
            self._read(place, stop.readers, x.detach(), spans)
        return x

    def _visit_map(self, place: Place, stop: _Stop, x: Tensor, sequence: int) -> Tensor:
        for edit in stop.edits.get(sequence, ()):
            x = self._apply(edit, x.transpose(0, 1), place[0], sequence).transpose(0, 1)
        if sequence in stop.readers:
            span, masked = {sequence: slice(None)}, place[0] == "attn_scores"
            self._kept[place, sequence] = keep_rows(x.detach(), span, self.keep, masked=masked)
        return x

    def _edited(self, name: str, stop: _Stop, x: Tensor, spans: Sequence[slice]) -> Tensor:
        x = x.clone()
        for sequence, edits in stop.edits.items():
            span = spans[sequence]
            for edit in edits:
                x[span] = self._apply(edit, x[span], name, sequence)
        return x

    def _apply(self, edit: Edit, rows: Tensor, name: str, sequence: int) -> Tensor:
        places = self._places(name, sequence)
        return edit.apply(rows, places, self.inspections[sequence].prompt_length)

    def _read(self, place: Place, readers: list[int], x: Tensor, spans: Sequence[slice]) -> None:
        lengths = [spans[reader].stop - spans[reader].start for reader in readers]
        if len(readers) < self.packed.num_sequences:
            x = torch.cat([x[spans[reader]] for reader in readers])
        for reducer in self.keep.reducers:
            vectors = pool(x, lengths, reducer)
            single = dict(zip(readers, _lay_out([1] * len(readers)), strict=True))
            self._kept[place, reducer] = keep_rows(vectors, single, self.keep)
        if not self.keep.reducers:
            kept_spans = dict(zip(readers, _lay_out(lengths), strict=True))
            self._kept[place, None] = keep_rows(x, kept_spans, self.keep)

    def _find(self, point: Point, sequence: int | None = None, reducer: str | None = None) -> Kept:
        key = sequence if _comes_from_maps(point) else reducer
        kept = self._kept.get((point.place, key))
        if kept is None:
            raise ValueError(f"{point} was not reached: run a forward with this plan first")
        return kept

    def _spans(self, name: str, num_rows: int) -> tuple[slice, ...]:
        """The rows of each sequence at a point: its tokens, or those with logits."""
        lengths: Sequence[int] = self.packed.lengths
        if name == "logits" and self.logit_rows is not None:
            lengths = [len(self._logit_tokens(i)) for i in range(self.packed.num_sequences)]
        if num_rows != sum(lengths):
            raise ValueError(
                f"{num_rows} rows of {name} for {sum(lengths)} tokens: give the plan"
                " the logit_rows that the forward computes"
            )
        return _lay_out(lengths)

    def _places(self, name: str, sequence: int) -> Sequence[int]:
        """The position in its sequence of each row at a point."""
        start, length = self.packed.starts[sequence], self.packed.lengths[sequence]
        if name != "logits" or self.logit_rows is None:
            return range(start, start + length)
        offset = self.packed.offsets[sequence]
        return [start + token - offset for token in self._logit_tokens(sequence)]

    def _logit_tokens(self, sequence: int) -> list[int]:
        begin, end = self.packed.offsets[sequence : sequence + 2]
        return [token for token in self.logit_rows or () if begin <= token < end]

    def _check_pooling(self) -> None:
        if not self.keep.reducers:
            return
        points = self.inspections[0].points
        if any(inspection.points != points for inspection in self.inspections):
            raise ValueError("pooling needs the same points for every sequence")
        for point in points:
            if _comes_from_maps(point):
                raise PointError(f"{point} comes from a map and is not pooled here; extract it")


def plan_capture(
    packed: Packed,
    points: Sequence[Point],
    *,
    edits: Sequence[Edit] = (),
    keep: Keep | None = None,
    whole: bool = False,
) -> CapturePlan:
    """Keep the same points of every sequence, under the same edits."""
    inspection = Inspection(tuple(points), tuple(edits))
    return CapturePlan(packed, [inspection] * packed.num_sequences, keep=keep, whole=whole)


def make_step_plan(
    packed: Packed,
    inspections: Sequence[Inspection | None],
    logit_rows: Sequence[int] | None = None,
    *,
    keep: Keep | None = None,
) -> CapturePlan:
    """A plan for one step of generation, which runs the whole model; None inspects nothing."""
    each = [inspection or Inspection() for inspection in inspections]
    return CapturePlan(packed, each, keep=keep, whole=True, logit_rows=logit_rows)


def _comes_from_maps(point: Point) -> bool:
    return point.is_summary or point.kind.shape == "map"


def _depth(inspections: Sequence[Inspection]) -> int | None:
    depths = [point.depth for inspection in inspections for point in inspection.points]
    known = [depth for depth in depths if depth is not None]
    return max(known) if known and len(known) == len(depths) else None


def _arrange(inspections: Sequence[Inspection]) -> dict[Place, _Stop]:
    stops: dict[Place, _Stop] = {}
    for sequence, inspection in enumerate(inspections):
        for place in dict.fromkeys(point.place for point in inspection.points):
            stops.setdefault(place, _Stop()).readers.append(sequence)
        for edit in inspection.edits:
            edits = stops.setdefault(edit.point.place, _Stop()).edits
            edits.setdefault(sequence, []).append(edit)
    return stops


def _lay_out(lengths: Sequence[int]) -> tuple[slice, ...]:
    """Where rows of these lengths lie end to end."""
    return _lay_out_each(tuple(lengths))


@lru_cache(maxsize=8)
def _lay_out_each(lengths: tuple[int, ...]) -> tuple[slice, ...]:
    """All points of a forward share it."""
    ends = accumulate(lengths, initial=0)
    return tuple(slice(begin, end) for begin, end in pairwise(ends))
