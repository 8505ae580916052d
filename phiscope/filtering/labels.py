"""Labels: rows of a data file joined with the rows of a store by id, and what the labels mean.

A label names one of two classes, or is a grade from 0 to 5. What "quality" is, these labels say
and nothing else does.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from phiscope.errors import FilterError, InputError
from phiscope.extraction.inputs import Fields, Row, open_source
from phiscope.store import Store
from phiscope.store.index import read_ids

MAX_GRADE = 5.0
_NUM_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class LabelFields:
    """Names of columns of the data file; None takes the default that `Fields` has."""

    label: str = "label"
    text: str | None = None
    id: str | None = None
    group: str | None = None
    """Rows with the same value are held out together or not at all; None: each row by its id."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Rows of a store with their labels and texts, in the order of the data file."""

    rows: NDArray[np.int64]
    """Of the store."""
    labels: list[str]
    texts: list[str]
    groups: list[str]
    """The ids where there are no groups."""
    num_skipped: int
    """Rows of the data file that the store lists as bad."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Labels that name two classes; the target is 1 for the positive one and 0 for the other."""

    positive: str
    negative: str

    def targets(self, labels: Sequence[str]) -> NDArray[np.float64]:
        return np.array([label == self.positive for label in labels], dtype=np.float64)

    def are_positive(self, targets: NDArray[np.float64]) -> NDArray[np.bool_]:
        is_one: NDArray[np.bool_] = targets == 1
        return is_one

    def to_json(self) -> dict[str, Any]:
        return {"positive": self.positive, "negative": self.negative}


@dataclass(frozen=True, kw_only=True)
class Grades:
    """Labels that are numbers from 0 to 5, positive from one on; the target is the grade."""

    positive_from: float

    def targets(self, labels: Sequence[str]) -> NDArray[np.float64]:
        return np.array([_read_grade(label) for label in labels], dtype=np.float64)

    def are_positive(self, targets: NDArray[np.float64]) -> NDArray[np.bool_]:
        return targets >= self.positive_from

    def to_json(self) -> dict[str, Any]:
        return {"positive_from": self.positive_from}


def read_meaning(value: Mapping[str, Any]) -> Classes | Grades:
    """What `to_json` wrote; `ValueError` if it is neither."""
    if value.keys() == {"positive", "negative"}:
        return Classes(positive=str(value["positive"]), negative=str(value["negative"]))
    if value.keys() == {"positive_from"}:
        return Grades(positive_from=float(value["positive_from"]))
    raise ValueError(f"labels are two classes or grades, got {dict(value)!r}")


def choose_meaning(
    labels: Iterable[str], positive: str | None, positive_from: float
) -> Classes | Grades:
    """Two classes where a positive one is named, else grades; `FilterError` if they are neither."""
    kinds = sorted(set(labels))
    if positive is None:
        meaning = Grades(positive_from=positive_from)
        meaning.targets(kinds)
        return meaning
    if positive not in kinds or len(kinds) != 2:
        found = ", ".join(map(repr, kinds[:_NUM_NAMED])) + (", ..." if len(kinds) > 5 else "")
        raise FilterError(
            f"a filter tells {positive!r} from one other class, and the labels are {found}"
        )
    return Classes(positive=positive, negative=next(kind for kind in kinds if kind != positive))


def read_labelled(
    store: Store, data: Any, fields: LabelFields, *, format: str | None = None
) -> Labelled:
    """Join a file, or an iterable of mappings, with a store.

    Every row of the data must have a label, an id of its own that one row of the store has, and
    the text that the store was made of; rows of the store without a label are left alone. Raises
    `InputError` that counts and names the ids that do not fit.
    """
    name, rows, num_skipped = _read_rows(store, data, fields, format)
    groups = _read_groups(data, fields, format)
    _check_rows(name, rows, fields, groups)
    places = _find_texts(store, name, rows)
    return Labelled(
        rows=np.array([places[row.id] for row in rows], dtype=np.int64),
        labels=[str(row.label) for row in rows],
        texts=[str(row.text) for row in rows],
        groups=[row.id if groups is None else str(groups[row.index]) for row in rows],
        num_skipped=num_skipped,
    )


def _read_rows(
    store: Store, data: Any, fields: LabelFields, format: str | None
) -> tuple[str, list[Row], int]:
    """The name of the data, and its rows but for those that the store lists as bad."""
    wanted = Fields(text=fields.text, id=fields.id, label=fields.label)
    source = open_source(data, wanted, format=format)
    if not source.repeatable:
        raise InputError(f"{source.name} can be read once; give a file or a list of labelled rows")
    known_bad = {entry["id"] for entry in store.errors if "error" in entry}
    rows = list(source.rows())
    kept = [row for row in rows if row.id not in known_bad]
    if not kept:
        raise InputError(f"{source.name} has no labelled rows of {store.path}")
    return source.name, kept, len(rows) - len(kept)


def _read_groups(
    data: Any, fields: LabelFields, format: str | None
) -> dict[int, str | None] | None:
    """The group of each row by the row's number, in a pass of its own."""
    if fields.group is None:
        return None
    wanted = Fields(text=fields.text, id=fields.id, label=fields.group)
    return {row.index: row.label for row in open_source(data, wanted, format=format).rows()}


def _check_rows(
    name: str,
    rows: Sequence[Row],
    fields: LabelFields,
    groups: Mapping[int, str | None] | None,
) -> None:
    bad = [row for row in rows if row.text is None]
    if bad:
        _refuse(name, "have no text", [f"{r.id} ({r.fault})" for r in bad], "mend or remove them")
    absent = [row.id for row in rows if row.label is None]
    if absent:
        _refuse(name, f"have no {fields.label!r}", absent, "label or remove them")
    alone = [row.id for row in rows if groups is not None and groups[row.index] is None]
    if alone:
        _refuse(name, f"have no {fields.group!r}", alone, "name their group or remove them")
    counts = Counter(row.id for row in rows)
    twice = [id for id, count in counts.items() if count > 1]
    if twice:
        _refuse(name, "are there more than once", twice, "a label belongs to an id of its own")


def _find_texts(store: Store, name: str, rows: Sequence[Row]) -> dict[str, int]:
    """The row of the store that has each id, and the same text."""
    wanted = pa.array([row.id for row in rows], pa.string())
    places: dict[str, int] = {}
    digests: dict[str, str] = {}
    twice, begin = [], 0
    for batch in store.table().to_batches():
        ids = read_ids(batch)
        found = np.flatnonzero(pc.is_in(ids, value_set=wanted).to_numpy(zero_copy_only=False))
        hashes = batch.column("text_sha256").take(pa.array(found)).to_pylist()
        for place, id, digest in zip(found, ids.take(found).to_pylist(), hashes, strict=True):
            if id in places:
                twice.append(id)
            places[id], digests[id] = begin + int(place), digest
        begin += batch.num_rows
    if twice:
        _refuse(name, f"are of several texts of {store.path}", twice, "extract with other ids")
    missing = [row.id for row in rows if row.id not in places]
    if missing:
        _refuse(name, f"are missing in {store.path}", missing, "extract or remove them")
    changed = [row.id for row in rows if row.sha256 != digests[row.id]]
    if changed:
        remedy = "give the texts that were extracted, or extract these"
        _refuse(name, f"have another text than {store.path} was made of", changed, remedy)
    return places


def _refuse(name: str, what: str, ids: Sequence[str], remedy: str) -> NoReturn:
    shown = ", ".join(ascii(id[:60]) for id in ids[:_NUM_NAMED])
    more = ", ..." if len(ids) > _NUM_NAMED else ""
    raise InputError(f"{name}: {len(ids):,} ids {what}: {shown}{more}; {remedy}")


def _read_grade(label: str) -> float:
    try:
        grade = float(label)
    except ValueError:
        grade = float("nan")
    if not (isfinite(grade) and 0 <= grade <= MAX_GRADE):
        raise FilterError(
            f"the label {label!r} is no grade from 0 to {MAX_GRADE:g}; of two classes, name the"
            " positive one"
        )
    return grade
