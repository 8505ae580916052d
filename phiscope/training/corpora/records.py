"""The manifest: all that is known of a corpus, and of one that is not finished yet.

A header says what the corpus was to be: tokenizer, type of the ids, options. Records say what the
shards hold. What is in these files is strict JSON that depends on the input and the header alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from phiscope.errors import TrainingError
from phiscope.strict import read_json_object
from phiscope.tokenizer import Tokenizer
from phiscope.training.corpora.duplicates import datasketch_version
from phiscope.training.corpora.options import CorpusOptions

Part = Literal["train", "heldout"]
PARTS: tuple[Part, ...] = ("train", "heldout")
Records = dict[Part, list["ShardRecord"]]
Header = dict[str, Any]

FORMAT = {"format": "phiscope-corpus", "version": 1}
ITEM_BYTES = {"uint16": 2, "uint32": 4}
_COUNTS = ("num_documents", "num_tokens", "num_bytes")
_MAX_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What a shard holds, and its files' hashes."""

    num_documents: int
    num_tokens: int
    num_bytes: int
    """Of the documents' texts in UTF-8."""
    num_rows: int
    """Rows of the input that were read when its last document was."""
    input_sha256: str
    """Of these rows."""
    tokens_sha256: str
    borders_sha256: str

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.startswith("num_"):
                sound = type(value) is int and value >= 1
            else:
                sound = isinstance(value, str) and len(value) == 64
            if not sound:
                raise ValueError(f"a shard's {name} cannot be {value!r}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All about a finished corpus."""

    header: Header
    parts: Records
    num_rows: int
    input_sha256: str
    drops: dict[str, int]
    """Rows that are no documents, by reason."""
    num_replaced: int
    """NULs that were replaced in the documents."""
    faults: list[str]
    """The first bad rows, in words."""

    def count(self, name: str, part: Part = "train") -> int:
        """The sum over a part's shards of `num_documents`, `num_tokens` or `num_bytes`."""
        return sum(int(getattr(record, name)) for record in self.parts[part])

    def to_json(self) -> dict[str, Any]:
        known = {**FORMAT, "header": self.header, **list_records(self.parts)}
        rest = {name: getattr(self, name) for name in _FIELDS}
        parts = self.parts
        counts = {part: {name: self.count(name, part) for name in _COUNTS} for part in parts}
        return {**known, **rest, "counts": counts}


def make_header(tokenizer: Tokenizer, options: CorpusOptions) -> Header:
    """What a corpus is to be. Raises `MissingExtraError` where datasketch is needed and absent."""
    vocab_size = tokenizer.vocab_size
    return {
        "tokenizer": {
            "sha256": tokenizer.fingerprint,
            "vocab_size": vocab_size,
            "eos_token_id": tokenizer.eos_token_id,
        },
        "dtype": "uint16" if vocab_size <= 2**16 else "uint32",
        "options": options.to_json(),
        "datasketch": None if options.near_duplicates is None else datasketch_version(),
    }


def check_same(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `TrainingError` naming the first difference between two headers."""
    flat_stored, flat_wanted = _flatten(stored), _flatten(wanted)
    for name in [*flat_wanted, *flat_stored]:
        there, here = flat_stored.get(name), flat_wanted.get(name)
        if there != here:
            raise TrainingError(
                f"{path} is of another corpus: {name} is {there!r} there and {here!r} here;"
                " give another folder"
            )


def list_records(parts: Records) -> dict[str, Any]:
    """Shards as JSON."""
    return {"parts": {part: [asdict(one) for one in records] for part, records in parts.items()}}


def read_manifest(path: Path) -> Manifest:
    """The manifest of a finished corpus; `TrainingError` if it is damaged or of something else."""
    value = _read(path)
    try:
        return Manifest(
            header=_read_header(value),
            parts=_read_records(value),
            **{name: _expect(value[name], kind) for name, kind in _FIELDS.items()},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def read_unfinished(path: Path) -> tuple[Header, Records]:
    """What is known of a corpus that is not finished."""
    value = _read(path)
    try:
        return _read_header(value), _read_records(value)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


_FIELDS: dict[str, type] = {
    "num_rows": int,
    "input_sha256": str,
    "drops": dict,
    "num_replaced": int,
    "faults": list,
}


def _read(path: Path) -> dict[str, Any]:
    value = read_json_object(path, _MAX_BYTES, TrainingError)
    if {name: value.get(name) for name in FORMAT} != FORMAT:
        raise TrainingError(f"{path} is of no corpus that this version of phiscope can read")
    return value


def _read_header(value: Mapping[str, Any]) -> Header:
    header: Header = _expect(value["header"], dict)
    tokenizer = _expect(header["tokenizer"], dict)
    size, end = _expect(tokenizer["vocab_size"], int), _expect(tokenizer["eos_token_id"], int)
    _expect(tokenizer["sha256"], str)
    _expect(header["options"], dict)
    if header["dtype"] not in ITEM_BYTES or not 0 <= end < size:
        raise ValueError(f"ids of {header['dtype']!r} below {size} with the end {end}")
    return header


def _read_records(value: Mapping[str, Any]) -> Records:
    parts = _expect(value["parts"], dict)
    return {part: [ShardRecord(**one) for one in _expect(parts[part], list)] for part in PARTS}


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _damaged(path: Path, error: Exception) -> TrainingError:
    return TrainingError(
        f"{path} is damaged ({type(error).__name__}: {error}); build the corpus again in a new"
        " folder, or copy it again"
    )


def _flatten(value: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= _flatten(inner, f"{above}{name}.")
        else:
            flat[above + name] = inner
    return flat
