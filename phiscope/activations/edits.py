"""Edits: what may stand at a point instead of what the model computed there.

An edit belongs to one point and one sequence; it sees that sequence's rows alone, so neighbours in
a batch cannot notice it. Rows are (T, ...), one for each token; attention maps are shown as
(T, heads, K), one row for each query. An edit returns new rows and leaves the given ones alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import Literal

import torch
from torch import Tensor

from phiscope.activations.points import Point, row_shape
from phiscope.config import PhiConfig
from phiscope.errors import PointError

Phase = Literal["all", "prompt", "completion"]
_HEADED = ("heads", "kv_heads", "map")


@dataclass(frozen=True, eq=False)
class Edit(ABC):
    """A change at a point: of all rows, or of the tokens at `positions` and in `phase` only.

    Positions count from the start of the sequence, whatever part of it a forward runs. Rows of the
    completion are those of generated tokens; the last row of the prompt makes the first of them.
    """

    point: Point
    positions: tuple[int, ...] | None = field(default=None, kw_only=True)
    phase: Phase = field(default="all", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.point, Point):
            raise TypeError(
                f"an edit's point is a Point, such as Point('resid_post', 3), got {self.point!r}"
            )
        if self.point.is_summary:
            raise PointError(f"{self.point} can be read only; edit attn_probs.{self.point.layer}")
        positions = self.positions
        if positions is not None and (
            min(positions, default=-1) < 0 or len(set(positions)) < len(positions)
        ):
            raise ValueError(f"positions at {self.point} must be >= 0 and differ, got {positions}")
        if self.phase not in ("all", "prompt", "completion"):
            raise ValueError(
                f"phase at {self.point} is all, prompt or completion, not {self.phase!r}"
            )

    def check(self, config: PhiConfig) -> None:
        """Raise `ValueError`, naming the point, if this edit does not fit this model."""
        self._fit(row_shape(self.point, config) or (config.num_attention_heads, 0))

    def apply(self, rows: Tensor, places: Sequence[int], prompt_length: int | None) -> Tensor:
        """New rows (T, ...) for tokens at `places` of a sequence; the given ones if none change.

        Raises `ValueError`, naming the point, if this edit does not fit such rows.
        """
        self._fit(tuple(rows.shape[1:]))
        chosen = self._choose(places, prompt_length)
        if chosen is None:
            return self._checked(rows, self._change(rows, places))
        if not chosen:
            return rows
        index = torch.tensor(chosen, device=rows.device)
        some = rows[index]
        changed = self._checked(some, self._change(some, [places[i] for i in chosen]))
        return rows.index_copy(0, index, changed.to(rows))

    def changes(self, place: int, prompt_length: int | None) -> bool:
        """Whether it changes the token at this place."""
        return self._choose([place], prompt_length) != []

    @abstractmethod
    def _change(self, rows: Tensor, places: Sequence[int]) -> Tensor:
        """New rows for the tokens at `places`."""

    @abstractmethod
    def _fit(self, shape: tuple[int, ...]) -> None:
        """Raise `ValueError` unless this edit suits rows of this shape; for maps (heads, any)."""

    def _choose(self, places: Sequence[int], prompt_length: int | None) -> list[int] | None:
        """Indices into `places` of the rows to change; None for all."""
        if self.positions is None and (self.phase == "all" or prompt_length is None):
            return None if self.phase != "completion" else []
        wanted = None if self.positions is None else set(self.positions)
        return [
            index
            for index, place in enumerate(places)
            if (wanted is None or place in wanted) and self._in_phase(place, prompt_length)
        ]

    def _in_phase(self, place: int, prompt_length: int | None) -> bool:
        if self.phase == "all":
            return True
        return (prompt_length is None or place < prompt_length) == (self.phase == "prompt")

    def _checked(self, rows: Tensor, changed: Tensor) -> Tensor:
        if changed.shape != rows.shape:
            raise ValueError(
                f"the edit at {self.point} made {tuple(changed.shape)} of rows {tuple(rows.shape)}"
            )
        return changed


@dataclass(frozen=True, eq=False)
class Add(Edit):
    """Add `scale` times a vector to each row: steering."""

    vector: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_finite(self.point, "vector", self.vector)
        _check_number(self.point, "scale", self.scale)

    def _change(self, rows: Tensor, places: Sequence[int]) -> Tensor:
        return rows + self.scale * self.vector.to(rows).reshape(rows.shape[1:])

    def _fit(self, shape: tuple[int, ...]) -> None:
        _check_size(self.point, "vector", self.vector, shape)


@dataclass(frozen=True, eq=False)
class Replace(Edit):
    """Put other rows there: patching. `values` is one row for all, or one for each position."""

    values: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_finite(self.point, "values", self.values)

    def _change(self, rows: Tensor, places: Sequence[int]) -> Tensor:
        values = self.values.to(rows)
        if self.values.numel() == prod(rows.shape[1:]):
            return values.reshape(rows.shape[1:]).expand_as(rows).clone()
        assert self.positions is not None, "check() refuses rows without positions"
        index = torch.tensor([self.positions.index(p) for p in places], device=rows.device)
        return values.reshape(-1, *rows.shape[1:])[index]

    def _fit(self, shape: tuple[int, ...]) -> None:
        count = len(self.positions or ())
        one_each = self.values.ndim > 1 and len(self.values) == count
        if not one_each or tuple(self.values.shape[1:]) not in (shape, (prod(shape),)):
            _check_size(self.point, "values", self.values, shape)


@dataclass(frozen=True, eq=False)
class Ablate(Edit):
    """Remove a direction v, or the span of several rows v: h - v v^T h, with v made orthonormal."""

    direction: Tensor
    _basis: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_finite(self.point, "direction", self.direction)
        direction = self.direction.detach().double()
        spanning = direction[None] if direction.ndim == 1 else direction.flatten(1)
        basis, size = torch.linalg.qr(spanning.T)  # (width, k), (k, k)
        if len(size) < len(spanning) or size.diagonal().abs().min() <= 1e-9 * size.abs().max():
            raise ValueError(f"the directions to ablate at {self.point} are zero or dependent")
        object.__setattr__(self, "_basis", basis)

    def _change(self, rows: Tensor, places: Sequence[int]) -> Tensor:
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32)).flatten(1)
        basis = self._basis.to(wide)
        return (wide - (wide @ basis) @ basis.T).to(rows.dtype).reshape(rows.shape)

    def _fit(self, shape: tuple[int, ...]) -> None:
        _check_size(self.point, "direction", self._basis[:, 0], shape)


@dataclass(frozen=True, eq=False)
class Scale(Edit):
    """Multiply by a factor: everything, or only some heads. A factor of 0 silences them.

    Scores that the causal mask has set to -inf stay there.
    """

    factor: float
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number(self.point, "factor", self.factor)

    def _change(self, rows: Tensor, places: Sequence[int]) -> Tensor:
        scaled = rows * self.factor if self.factor else torch.zeros_like(rows)
        if self.point.kind.shape == "map":
            scaled = torch.where(rows.isneginf(), rows, scaled)
        return scaled if self.heads is None else _only_heads(rows, scaled, self.heads)

    def _fit(self, shape: tuple[int, ...]) -> None:
        _check_heads(self.point, self.heads, shape)


@dataclass(frozen=True, eq=False)
class Knockout(Edit):
    """Cut attention to the keys at some places: at `attn_scores` or `attn_probs`, for some heads.

    At `attn_probs` the weights become 0 and the others stay. At `attn_scores` the softmax shares
    the weight among the other keys; there a token always keeps itself, for without any key there
    would be no softmax. `positions` are the queries.
    """

    keys: tuple[int, ...]
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.point.kind.shape != "map":
            raise PointError(f"keys are knocked out at attn_scores or attn_probs, not {self.point}")
        if min(self.keys, default=-1) < 0:
            raise ValueError(f"keys at {self.point} must be one or more places >= 0")

    def _change(self, rows: Tensor, places: Sequence[int]) -> Tensor:
        is_scores = self.point.name == "attn_scores"
        cut = torch.zeros(len(rows), rows.shape[-1], dtype=torch.bool, device=rows.device)
        cut[:, [key for key in self.keys if key < rows.shape[-1]]] = True
        if is_scores:
            cut[range(len(rows)), list(places)] = False
        changed = rows.masked_fill(cut[:, None], float("-inf") if is_scores else 0.0)
        return changed if self.heads is None else _only_heads(rows, changed, self.heads)

    def _fit(self, shape: tuple[int, ...]) -> None:
        _check_heads(self.point, self.heads, shape)


@dataclass(frozen=True, eq=False)
class Transform(Edit):
    """Any change: a function of the rows (T, ...) and their positions that returns new rows."""

    function: Callable[[Tensor, Sequence[int]], Tensor]

    def _change(self, rows: Tensor, places: Sequence[int]) -> Tensor:
        return self.function(rows.clone(), places).to(rows)

    def _fit(self, shape: tuple[int, ...]) -> None:
        """A function is judged by what it returns."""


def _only_heads(rows: Tensor, changed: Tensor, heads: tuple[int, ...]) -> Tensor:
    """`changed` at these heads and `rows` at the others; both (T, heads, ...)."""
    index = torch.tensor(heads, device=rows.device)
    return rows.index_copy(1, index, changed[:, index])


def _check_finite(point: Point, what: str, values: Tensor) -> None:
    if not values.is_floating_point():
        raise ValueError(f"the {what} at {point} must be floating point, got {values.dtype}")
    if not bool(values.isfinite().all()):
        raise ValueError(f"the {what} at {point} has a NaN or an infinity")


def _check_number(point: Point, what: str, number: float) -> None:
    if not isfinite(number):
        raise ValueError(f"the {what} at {point} must be finite, got {number}")


def _check_size(point: Point, what: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if point.kind.shape == "map":
        raise PointError(
            f"{point} is a map, whose size is the text's: use Scale, Knockout or Transform there"
        )
    if tuple(values.shape) not in (shape, (prod(shape),)):
        raise ValueError(f"the {what} at {point} has shape {tuple(values.shape)}, not {shape}")


def _check_heads(point: Point, heads: tuple[int, ...] | None, shape: tuple[int, ...]) -> None:
    if heads is None:
        return
    if point.kind.shape not in _HEADED:
        raise PointError(f"{point} has no heads; take z.{point.layer or 0} for what heads put out")
    if not heads or min(heads) < 0 or max(heads) >= shape[0] or len(set(heads)) < len(heads):
        raise ValueError(f"heads at {point} are 0 to {shape[0] - 1}, each once, got {heads}")
