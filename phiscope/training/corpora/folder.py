"""What lies in a corpus's folder: the names of its files, and the state they say it is in."""

import re
from pathlib import Path
from typing import Literal

from phiscope.errors import TrainingError
from phiscope.store.folder import LOCK_NAME, list_names
from phiscope.training.corpora.records import ITEM_BYTES, Header, Part, ShardRecord

MANIFEST_NAME = "manifest.json"
UNFINISHED_NAME = "unfinished.json"
BORDER_BYTES = 8

State = Literal["new", "unfinished", "finished"]

_PREFIXES: dict[Part, str] = {"train": "", "heldout": "heldout-"}
_SHARD_FILE = re.compile(r"(heldout-)?(tokens|borders)-\d{5,}\.bin")


def tokens_name(part: Part, number: int) -> str:
    """The file of a shard's ids."""
    return f"{_PREFIXES[part]}tokens-{number:05d}.bin"


def borders_name(part: Part, number: int) -> str:
    """The file that says where a shard's documents end."""
    return f"{_PREFIXES[part]}borders-{number:05d}.bin"


def survey(folder: Path) -> State:
    """The state of a folder, which need not exist; `TrainingError` if it holds other things."""
    names = set(list_names(folder))
    if MANIFEST_NAME in names:
        return "finished"
    if UNFINISHED_NAME in names:
        return "unfinished"
    foreign = next((name for name in sorted(names) if not _is_trace(name)), None)
    if foreign is None:
        return "new"
    raise TrainingError(f"{folder} is no corpus and holds {foreign}; give another folder")


def list_leftovers(folder: Path, kept: set[str]) -> list[Path]:
    """Temporary files of a killed build, and shards other than those kept."""
    return [
        folder / name
        for name in list_names(folder)
        if name not in kept and (_is_temporary(name) or _SHARD_FILE.fullmatch(name))
    ]


def check_files(folder: Path, part: Part, number: int, record: ShardRecord, header: Header) -> None:
    """Raise `TrainingError` for a shard's files that are absent, or cut, or longer than written."""
    item = ITEM_BYTES[header["dtype"]]
    check_size(folder / tokens_name(part, number), record.num_tokens * item)
    check_size(folder / borders_name(part, number), record.num_documents * BORDER_BYTES)


def check_size(path: Path, wanted: int) -> None:
    """Raise `TrainingError` for a file that is absent or of another size."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise TrainingError(f"cannot read {path}: {error.strerror}; {REMEDY}") from error
    if size != wanted:
        raise TrainingError(f"{path} has {size:,} bytes where {wanted:,} were written; {REMEDY}")


REMEDY = "copy the corpus again, or build it again in a new folder"


def _is_trace(name: str) -> bool:
    """Whether a build that was killed before its first shard may have left this."""
    return name == LOCK_NAME or _is_temporary(name)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")
