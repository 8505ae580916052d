"""What is known of a shard: what the job says of its rows, and what its file turned out to be.

Shard k holds what became of the input rows [k * S, (k + 1) * S), S being the store's shard size.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from phiscope.errors import StoreError


@dataclass(frozen=True, kw_only=True)
class ShardOrigin:
    """What the job says of a shard."""

    begin: int
    end: int
    """Input rows [begin, end)."""
    num_tokens: int
    input_sha256: str
    """Of the input rows, as the job defines it."""
    clamped: Mapping[str, int] = field(default_factory=dict)
    """Column -> values that were beyond the dtype's range."""
    errors: tuple[Mapping[str, Any], ...] = ()
    """Entries of errors.jsonl: `index`, `id`, and `error` or `warning`."""

    def __post_init__(self) -> None:
        _check_counts(self, "begin", "end", "num_tokens")
        if self.begin > self.end:
            raise ValueError(f"a shard cannot hold rows {self.begin} to {self.end}")


@dataclass(frozen=True, kw_only=True)
class ShardRecord(ShardOrigin):
    """The same, with the shard's file."""

    number: int
    num_rows: int
    """Rows of the table."""
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_counts(self, "number", "num_rows", "bytes")

    def to_json(self, *, errors: bool = True) -> dict[str, Any]:
        value = {**asdict(self), "errors": [dict(entry) for entry in self.errors]}
        if not errors:
            del value["errors"]
        return value


def read_record(value: Any) -> ShardRecord:
    """The record that `to_json` wrote; `StoreError` if it is none."""
    try:
        return ShardRecord(**{**value, "errors": tuple(value.get("errors", ()))})
    except (AttributeError, TypeError, ValueError) as error:
        raise StoreError(f"this is no record of a shard: {error}") from error


def make_record(
    origin: ShardOrigin, *, number: int, num_rows: int, num_bytes: int, sha256: str
) -> ShardRecord:
    """What the job said, with what was written."""
    known = {name: getattr(origin, name) for name in ShardOrigin.__dataclass_fields__}
    return ShardRecord(**known, number=number, num_rows=num_rows, bytes=num_bytes, sha256=sha256)


def _check_counts(record: ShardOrigin, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if type(value) is not int or value < 0:
            raise ValueError(f"a shard's {name} must be an integer from 0, got {value!r}")
