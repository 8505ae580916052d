"""Strict reading of data from outside: JSON objects, and numbers in their ranges.

Python's JSON reader accepts NaN, doubled keys and any size; Python's ints include the bools.
"""

import json
import math
from pathlib import Path
from typing import Any

from phiscope.errors import CheckpointError, ConfigError, FilterError, StoreError, TrainingError

JsonError = (
    type[ConfigError]
    | type[CheckpointError]
    | type[FilterError]
    | type[StoreError]
    | type[TrainingError]
)


def read_json_object(path: Path, limit: int, error_type: JsonError) -> dict[str, Any]:
    """A JSON file holding one object, at most `limit` bytes long."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise error_type(f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit:
        raise error_type(f"{path} is larger than the {limit:,} bytes such a file may have")
    return parse_json_object(data, str(path), error_type)


def read_optional_json(path: Path, limit: int, error_type: JsonError) -> dict[str, Any]:
    """As `read_json_object`; an absent file is an empty object."""
    return read_json_object(path, limit, error_type) if path.is_file() else {}


def parse_json_object(data: bytes, name: str, error_type: JsonError) -> dict[str, Any]:
    """One JSON object, strictly: UTF-8, no NaN or infinity, no key twice."""
    try:
        parsed = json.loads(
            data.decode("utf-8-sig"),
            parse_constant=_refuse_constant,
            object_pairs_hook=_unique_keys,
        )
    except (ValueError, RecursionError) as error:
        raise error_type(f"{name} is not sound JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise error_type(f"{name} must hold a JSON object, got a {type(parsed).__name__}")
    return parsed


def expect(sound: bool, name: str, value: object, wanted: str) -> None:
    """Raise `ConfigError` naming the field, the value and what it must be, unless sound."""
    if not sound:
        raise ConfigError(f"{name} must be {wanted}, got {value!r}")


def check_integer(name: str, value: object, *, low: int = 1, high: int = 2**31 - 1) -> int:
    """The value, which must be an int (no bool) from `low` to `high`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    expect(whole and low <= value <= high, name, value, f"an integer from {low} to {high:,}")  # type: ignore[operator]
    assert isinstance(value, int)
    return value


def check_number(name: str, value: object, *, low: float = 0.0, high: float = math.inf) -> float:
    """The value as a float, which must be finite, at least `low` and below `high`."""
    wanted = f"a finite number from {low} to below {high}"
    expect(isinstance(value, int | float) and not isinstance(value, bool), name, value, wanted)
    assert isinstance(value, int | float)
    expect(math.isfinite(value) and low <= value < high, name, value, wanted)
    return float(value)


def check_positive(name: str, value: object) -> float:
    """The value as a float, which must be finite and above zero."""
    number = check_number(name, value)
    expect(number > 0.0, name, value, "above zero")
    return number


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in result if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return result
