"""Fixed plans: rows kept and vectors added in a step that is recorded once and then replayed.

Which places are read and steered belongs to the recording. What is added where lies in a buffer for
each place, with a row for each sequence that is zero where nothing is added.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phiscope.activations.edits import Add, Edit
from phiscope.activations.inspection import Inspection
from phiscope.activations.points import Place, Point, row_shape
from phiscope.config import PhiConfig
from phiscope.errors import NonFiniteError
from phiscope.model import PhiForCausalLM


@dataclass(frozen=True)
class Description:
    """The places that a plan reads and steers, each once and in order."""

    reads: tuple[Place, ...]
    steers: tuple[Place, ...]


class FixedPlans:
    """Describes and makes plans. Maps, and edits other than one `Add` at a place, it leaves."""

    def describe(self, inspections: Sequence[Inspection | None]) -> Description | None:
        """The places these sequences read and steer; None if that cannot be fixed."""
        given = [inspection for inspection in inspections if inspection is not None]
        if not all(map(_is_fixed, given)):
            return None
        reads = {point.place for one in given for point in one.points}
        steers = {edit.point.place for one in given for edit in one.edits}
        return Description(_in_order(reads), _in_order(steers))

    def make(self, description: Hashable, batch: int, model: PhiForCausalLM) -> "FixedPlan":
        """A plan for so many sequences."""
        assert isinstance(description, Description)
        return FixedPlan(description, batch, model)


class FixedPlan:
    """Serves one forward after another; implements `outputs.Plan`."""

    depth = None

    def __init__(self, description: Description, batch: int, model: PhiForCausalLM) -> None:
        device, dtype = model.model.embed_tokens.weight.device, model.model.hidden_dtype
        wide = torch.promote_types(dtype, torch.float32)
        self._reads = frozenset(description.reads)
        self._added = {
            place: torch.zeros(
                batch,
                *_shape(place, model.config),
                dtype=wide if place[0] == "logits" else dtype,
                device=device,
            )
            for place in description.steers
        }
        self._loaded: dict[tuple[Place, int], _Loaded] = {}
        self._seen: dict[Place, Tensor] = {}
        self._joined: dict[torch.dtype, Tensor] = {}
        self._fetched: dict[Place, Tensor] = {}

    def wants_maps(self, layer: int) -> bool:
        """Never: a map has another size at every step."""
        return False

    def wants(self, name: str, layer: int | None = None) -> bool:
        """Whether this point is read or steered."""
        return (name, layer) in self._reads or (name, layer) in self._added

    def changes(self, name: str, layer: int | None = None) -> bool:
        """Whether this point is steered."""
        return (name, layer) in self._added

    def at(self, name: str, layer: int | None, x: Tensor, sequence: int | None = None) -> Tensor:
        """Add what is to be added, and copy what is read."""
        place = (name, layer)
        if place in self._added:
            x = x + self._added[place]
        if place in self._reads:
            self._seen[place] = x.clone()
        return x

    def finish(self) -> None:
        """Lay what was seen end to end, so that one copy for each dtype fetches all of it."""
        for dtype in {x.dtype for x in self._seen.values()}:
            rows = [x.flatten(1) for x in self._seen.values() if x.dtype == dtype]
            self._joined[dtype] = torch.cat(rows, dim=1)

    def load(self, inspections: Sequence[Inspection | None], places: Sequence[int]) -> None:
        """Put into the buffers what each sequence adds at its token's place."""
        for row, (inspection, place) in enumerate(zip(inspections, places, strict=True)):
            edits = () if inspection is None else inspection.edits
            length = None if inspection is None else inspection.prompt_length
            active = {edit.point.place: edit for edit in edits if edit.changes(place, length)}
            for steered, buffer in self._added.items():
                self._fill(buffer[row], (steered, row), active.get(steered))

    def fetch(self) -> None:
        """Copy what was seen to the CPU; from a GPU the copy goes on until it is waited for."""
        for dtype, joined in self._joined.items():
            places = [place for place, x in self._seen.items() if x.dtype == dtype]
            shapes = [self._seen[place].shape for place in places]
            parts = torch.split(
                joined.to("cpu", non_blocking=True), [s[1:].numel() for s in shapes], dim=1
            )
            for place, shape, part in zip(places, shapes, parts, strict=True):
                self._fetched[place] = part.view(shape[0], *shape[1:])

    def rows(self, sequence: int, inspection: Inspection) -> dict[str, Tensor]:
        """Copies of one sequence's rows (1, ...) at its points.

        Raises `NonFiniteError` for NaN and infinities.
        """
        return {
            str(point): _checked(self._fetched[point.place][sequence], point, sequence)[None]
            for point in inspection.points
        }

    def _fill(self, row: Tensor, key: tuple[Place, int], edit: Edit | None) -> None:
        """Write what an edit adds, unless it is known to stand there."""
        loaded = self._loaded.pop(key, None)
        if edit is None:
            if loaded is not None:
                row.zero_()
            return
        assert isinstance(edit, Add)
        if loaded is None or not loaded.equals(edit):
            row.copy_(edit.scale * edit.vector.to(row).reshape(row.shape))
            loaded = _Loaded(edit, edit.vector.clone() if _is_near(edit) else None)
        self._loaded[key] = loaded


@dataclass(frozen=True)
class _Loaded:
    """What a buffer's row was filled with."""

    edit: Add
    vector: Tensor | None
    """As it was then; None if that is not looked at, for a GPU would have to be waited for."""

    def equals(self, edit: Add) -> bool:
        """Whether that is known to be what this edit adds now."""
        return (
            edit is self.edit and self.vector is not None and torch.equal(edit.vector, self.vector)
        )


def _is_near(edit: Add) -> bool:
    return edit.vector.device.type == "cpu"


def _is_fixed(inspection: Inspection) -> bool:
    places = [edit.point.place for edit in inspection.edits]
    return (
        len(set(places)) == len(places)
        and all(type(edit) is Add for edit in inspection.edits)
        and not any(p.is_summary or p.kind.shape == "map" for p in inspection.points)
    )


def _in_order(places: set[Place]) -> tuple[Place, ...]:
    return tuple(place for _, place in sorted((Point(*place), place) for place in places))


def _shape(place: Place, config: PhiConfig) -> tuple[int, ...]:
    shape = row_shape(Point(*place), config)
    assert shape is not None, "maps are not steered here"
    return shape


def _checked(row: Tensor, point: Point, sequence: int) -> Tensor:
    """A copy that autograd may keep."""
    if not bool(row.isfinite().all()):
        raise NonFiniteError(f"{point} of sequence {sequence} has a NaN or an infinity")
    with torch.inference_mode(False):
        return row.clone()
