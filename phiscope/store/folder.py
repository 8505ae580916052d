"""What lies in a store's folder: the names of its files, and the state they say it is in."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from phiscope.errors import StoreError

LOCK_NAME = ".lock"
JOURNAL_NAME = "journal.jsonl"
MANIFEST_NAME = "manifest.json"
ERRORS_NAME = "errors.jsonl"

State = Literal["new", "unfinished", "finished"]

_SHARD_FILE = re.compile(r"(?:shard-(?P<first>\d{5,})|data-(?P<last>\d{5,})-of-\d{5,})\.arrow")


def shard_name(number: int) -> str:
    """The name of a shard while its store is unfinished."""
    return f"shard-{number:05d}.arrow"


def data_name(number: int, num_shards: int) -> str:
    """The name of a shard in a finished store, as `datasets` has it."""
    return f"data-{number:05d}-of-{num_shards:05d}.arrow"


def survey(folder: Path) -> State:
    """The state of a folder, which need not exist; `StoreError` if it holds other things."""
    names = list_names(folder)
    if MANIFEST_NAME in names:
        return "finished"
    if JOURNAL_NAME in names:
        return "unfinished"
    if all(name == LOCK_NAME or _is_temporary(name) for name in names):
        return "new"
    raise StoreError(f"{folder} is no store and not empty; give another folder")


def has_traces(folder: Path) -> bool:
    """Whether a finished store was killed before it had removed what only unfinished ones have."""
    names = list_names(folder)
    return any(name in (LOCK_NAME, JOURNAL_NAME) or _is_temporary(name) for name in names)


def locate_shards(folder: Path) -> dict[int, Path]:
    """The file of each shard, under its first or its final name."""
    found: dict[int, Path] = {}
    for name in list_names(folder):  # shard-... comes after data-... and is the newer one
        match = _SHARD_FILE.fullmatch(name)
        if match:
            found[int(match["first"] or match["last"])] = folder / name
    return found


def list_leftovers(folder: Path, kept: Iterable[Path]) -> list[Path]:
    """Temporary files of a killed job, and shards other than those kept."""
    wanted = {path.name for path in kept}
    return [
        folder / name
        for name in list_names(folder)
        if _is_temporary(name) or (_SHARD_FILE.fullmatch(name) and name not in wanted)
    ]


def list_names(folder: Path) -> list[str]:
    """The names in a folder, in order; none if there is no such folder."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read the folder {folder}: {error.strerror}") from error


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")
