"""Conventions: what "the hidden states" of a text are, by the name of who says so.

`transformers`: the tuple that its models return, L + 1 tensors: the embeddings, the stream after
each block but the last, and last the stream after the FINAL NORM. `last_block`: one tensor, the
stream after the last block and before the final norm. `points`: each by its own name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from phiscope.activations.points import Point, resolve_points, transformers_state

Convention = Literal["transformers", "last_block", "points"]


def transformers_points(num_layers: int) -> list[Point]:
    """The L + 1 points of transformers' `hidden_states`, in its order."""
    return [transformers_state(index, num_layers) for index in range(num_layers + 1)]


def last_block_points(num_layers: int) -> list[Point]:
    """The one point that is the last block's output, before the final norm."""
    return [Point("resid_post", num_layers - 1)]


def named_points(num_layers: int) -> list[Point]:
    """Every state there is: the embeddings, the stream after each block, and after the norm."""
    return resolve_points(["embeddings", "resid_post.[:]", "final_norm"], num_layers)


CONVENTIONS: dict[str, Callable[[int], list[Point]]] = {
    "transformers": transformers_points,
    "last_block": last_block_points,
    "points": named_points,
}


def convention_points(convention: str, num_layers: int) -> list[Point]:
    """What to capture for a convention; `ValueError` for one that does not exist."""
    if convention not in CONVENTIONS:
        raise ValueError(f"no convention {convention!r}; choose from {', '.join(CONVENTIONS)}")
    return CONVENTIONS[convention](num_layers)


def choose_states(
    convention: str, num_layers: int, layers: Sequence[int] | None = None
) -> list[Point]:
    """What to capture for a convention; `layers` picks some states of transformers' tuple."""
    points = convention_points(convention, num_layers)
    if layers is None:
        return points
    if convention != "transformers":
        raise ValueError(f"layers= belongs to convention 'transformers', not {convention}")
    return [transformers_state(index, num_layers) for index in layers]


def arrange_states(convention: str, names: Sequence[str], rows: Sequence[Tensor]) -> Any:
    """One text's captured rows as the convention has them: see `phiscope.Phi.hidden_states`."""
    if convention == "points":
        return dict(zip(names, rows, strict=True))
    states = torch.stack(list(rows))
    return states[0] if convention == "last_block" else states


def as_transformers(rows: Mapping[str, Tensor], num_layers: int) -> tuple[Tensor, ...]:
    """Captured rows as transformers' tuple: L + 1 tensors (T, hidden)."""
    return _pick(rows, transformers_points(num_layers))


def as_last_block(rows: Mapping[str, Tensor], num_layers: int) -> Tensor:
    """Captured rows as one tensor (T, hidden): the last block's output before the final norm."""
    return _pick(rows, last_block_points(num_layers))[0]


def _pick(rows: Mapping[str, Tensor], points: Sequence[Point]) -> tuple[Tensor, ...]:
    missing = [str(point) for point in points if str(point) not in rows]
    if missing:
        raise ValueError(f"{', '.join(missing[:5])} of this convention were not captured")
    return tuple(rows[str(point)] for point in points)
