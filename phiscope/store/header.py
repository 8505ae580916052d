"""What is fixed about a store before its first shard, and the proof that two jobs are one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from phiscope.errors import StoreError
from phiscope.store.schema import Schema, read_schema

_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class StoreHeader:
    """Schema, shard size and job are compared when a store is resumed or merged, notes are not."""

    schema: Schema
    shard_size: int
    """Input rows of a shard."""
    job: Mapping[str, Any]
    """JSON: all that the bytes of the store depend on."""
    notes: Mapping[str, Any]
    """JSON: what the user called things."""

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ValueError(f"a shard needs at least one row, got {self.shard_size}")
        for name in ("job", "notes"):
            plain = json.loads(json.dumps(getattr(self, name), allow_nan=False))
            if not isinstance(plain, dict):
                raise ValueError(f"the {name} must be a JSON object, got {plain!r}")
            object.__setattr__(self, name, plain)  # as it comes back from a file

    def to_json(self) -> dict[str, Any]:
        return {
            **self.schema.to_json(),
            "shard_size": self.shard_size,
            "job": self.job,
            "notes": self.notes,
        }

    def check_same(self, stored: "StoreHeader", folder: Path) -> None:
        """Raise `StoreError` naming the first difference to the header of a folder."""
        difference = self.find_difference(stored)
        if difference:
            raise StoreError(
                f"{folder} belongs to another job: {difference.name}: the store has "
                f"{show(difference.stored)}, this job has {show(difference.wanted)}; "
                "give another folder"
            )

    def find_difference(self, stored: "StoreHeader") -> "Difference | None":
        """The first thing in which a stored header differs from this one."""
        ours, theirs = self.to_json(), stored.to_json()
        names = ("job", "level", "columns", "shard_size")
        found = (_compare(Difference(name, theirs[name], ours[name])) for name in names)
        return next((difference for difference in found if difference), None)


class Difference(NamedTuple):
    """Two JSON values, and the path to them: `job.model.weights`."""

    name: str
    stored: Any
    wanted: Any


def read_header(value: Mapping[str, Any]) -> StoreHeader:
    """The header that `to_json` wrote; `StoreError` if it is none."""
    try:
        return StoreHeader(
            schema=read_schema(value),
            shard_size=value["shard_size"],
            job=value["job"],
            notes=value["notes"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"this is no header of a store: {error}") from error


def _compare(pair: Difference) -> Difference | None:
    """The innermost first difference of two values, None if they are the same."""
    parts = [difference for part in _take_apart(pair) if (difference := _compare(part))]
    if parts:
        return parts[0]
    return pair if _show_all(pair.stored) != _show_all(pair.wanted) else None


def _take_apart(pair: Difference) -> list[Difference]:
    """The parts of two values that can be compared one by one."""
    name, stored, wanted = pair
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = [*wanted, *(key for key in stored if key not in wanted)]
        return [Difference(f"{name}.{key}", stored.get(key), wanted.get(key)) for key in keys]
    if isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        items = enumerate(zip(stored, wanted, strict=True))
        return [Difference(f"{name}[{place}]", *values) for place, values in items]
    return []


def _show_all(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def show(value: Any) -> str:
    """A JSON value in an error."""
    text = "nothing" if value is None else _show_all(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
