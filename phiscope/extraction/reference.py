"""Reference: what a store should hold of a text, computed again in the plainest way.

Each text is run alone, in fp32, window by window and to its end; nothing is shared, and nothing is
chosen or reduced inside the forward but afterwards, in float64 and in another way than jobs do it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phiscope.activations.forward import capture_batches
from phiscope.activations.points import Point, row_shape
from phiscope.errors import NonFiniteError
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.pieces import Piece, Text, cut_windows
from phiscope.model import PhiForCausalLM
from phiscope.runtime import exact_products
from phiscope.wide import name_arithmetic, widen

Array = NDArray[np.float64]

_MAX_NUMBERS = 2**24
_EXACT = ("float32", "float64")


@dataclass(frozen=True)
class Rows:
    """A point's rows (n, width) of consecutive chosen tokens, `order` of which stand before."""

    point: Point
    order: int
    values: Array


class Reference:
    """An extractor's model in fp32, or as it is where it is no narrower.

    Integer weights stay what they are, but activations are not rounded.

    States of `max_numbers` numbers are in memory at a time, or those of one point.
    """

    def __init__(self, extractor: Extractor, *, max_numbers: int = _MAX_NUMBERS) -> None:
        self._extractor = extractor
        self._max_numbers = max_numbers
        is_exact = name_arithmetic(extractor.model) in _EXACT
        self._model: PhiForCausalLM = (
            extractor.model if is_exact else widen(extractor.model, products=True)
        )

    def run(self, text: Text, points: Sequence[Point]) -> Iterator[Rows]:
        """The rows of a text's chosen tokens at the points, window by window."""
        for piece in self._cut(text):
            read = piece.reads[0]  # the tokens from `order` on, which no window before gave
            is_here = (text.positions >= read.order) & (
                text.positions < read.order + len(read.rows)
            )
            chosen = np.flatnonzero(is_here)
            rows = text.positions[chosen] - read.order + read.rows[0]
            for some in self._group(points, len(piece.ids)) if len(chosen) else ():
                for point, states in self._capture(piece, some).items():
                    yield Rows(point, int(chosen[0]), _as_array(states[rows]))

    def head(self, hidden: Array) -> Array:
        """The logits (n, vocab) of rows (n, hidden) after the final norm."""
        rows = torch.from_numpy(hidden).to(self._extractor.device, self._model.model.hidden_dtype)
        with torch.inference_mode(), exact_products():
            return _as_array(self._model.logits(rows))

    def _cut(self, text: Text) -> Iterator[Piece]:
        """The windows of all tokens, also of those that do not count."""
        whole = replace(text, positions=np.arange(len(text.ids)), end=len(text.ids))
        extractor = self._extractor
        return cut_windows(whole, 0, window=extractor.window, stride=extractor.stride)

    def _group(self, points: Sequence[Point], num_tokens: int) -> Iterator[list[Point]]:
        """The points, as many at a time as memory has room for."""
        ends = accumulate(self._count_numbers(point, num_tokens) for point in points)
        groups = groupby(
            zip(ends, points, strict=True), key=lambda pair: pair[0] // self._max_numbers
        )
        return ([point for _, point in group] for _, group in groups)

    def _count_numbers(self, point: Point, num_tokens: int) -> int:
        """What a point takes while a text runs: a summary needs its whole map."""
        if point.is_summary:
            return self._model.config.num_attention_heads * num_tokens**2
        return num_tokens * self._width(point)

    def _capture(self, piece: Piece, points: Sequence[Point]) -> Mapping[Point, Tensor]:
        """All tokens' rows (T, ...) at each point; NaN where some are no numbers."""
        edits = self._extractor.edits
        with exact_products():
            ((_, plan),) = capture_batches(self._model, [piece.ids], points, edits=edits)
        try:
            rows = plan.rows(0)
        except NonFiniteError:
            sizes = {point: (len(piece.ids), self._width(point)) for point in points}
            return {point: torch.full(size, torch.nan) for point, size in sizes.items()}
        return {point: rows[str(point)] for point in points}

    def _width(self, point: Point) -> int:
        shape = row_shape(point, self._model.config)
        assert shape is not None, "whole maps are not extracted"
        return prod(shape)


def fold(reducer: str, before: Array | None, rows: Rows, count: int) -> Array:
    """Add some rows to what a text of `count` chosen tokens comes to: (1, width)."""
    if reducer == "max":
        part: Array = rows.values.max(axis=0, keepdims=True)
        return part if before is None else np.maximum(before, part)
    places = np.arange(rows.order, rows.order + len(rows.values))
    part = (_weigh(reducer, places, count)[:, None] * rows.values).sum(axis=0, keepdims=True)
    return part if before is None else before + part


def _weigh(reducer: str, places: NDArray[np.int64], count: int) -> Array:
    """What each chosen token counts for, by its place among them."""
    ones = np.ones(len(places))
    weights: dict[str, Array] = {
        "mean": ones / count,
        "weighted_mean": ones * (places + 1) / sum(range(count + 1)),
        "last": ones * (places == count - 1),
        "first": ones * (places == 0),
    }
    return weights[reducer]


def _as_array(x: Tensor) -> Array:
    values: Array = x.flatten(1).double().cpu().numpy()
    return values
