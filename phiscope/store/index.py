"""The index of a store: where the rows of each text are, found once by a pass over the ids."""

from collections.abc import Iterable
from difflib import get_close_matches

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phiscope.errors import StoreError
from phiscope.store.scratch import Array

_NUM_NAMED = 5


class TextIndex:
    """The ids of the texts in the store's order, and the rows of each."""

    def __init__(self, ids: list[str], bounds: Array) -> None:
        """`bounds`: the first row of each text, and the number of rows."""
        self.ids = ids
        self._bounds = bounds
        self._places = {name: place for place, name in enumerate(ids)}
        self._twice = len(self._places) < len(ids)

    def rows(self, name: str) -> slice:
        """The rows of a text; `StoreError` for an id that is not there, or of several texts."""
        place = self._places.get(name)
        if place is None:
            raise StoreError(f"no text {name!r} in the store; {name_choices(name, self.ids)}")
        if self._twice and self.ids.index(name) != place:
            rows = f"{self._bounds[self.ids.index(name)]} and {self._bounds[place]}"
            raise StoreError(
                f"several texts have the id {name!r}, as those at rows {rows}; read them by row"
            )
        return slice(int(self._bounds[place]), int(self._bounds[place + 1]))


def index_texts(batches: Iterable[pa.RecordBatch]) -> TextIndex:
    """One row per text."""
    ids = [name for batch in batches for name in read_ids(batch).to_pylist()]
    return TextIndex(ids, np.arange(len(ids) + 1))


def index_tokens(batches: Iterable[pa.RecordBatch]) -> TextIndex:
    """One row per token: a text starts where the id changes, or the position does not grow."""
    ids: list[str] = []
    starts: list[Array] = []
    num_rows, last_id, last_position = 0, None, -1
    for batch in batches:
        names, positions = read_ids(batch), batch.column("pos").to_numpy()
        goes_on = names[0].as_py() == last_id and positions[0] > last_position
        begins = np.append(not goes_on, _find_changes(names) | (np.diff(positions) <= 0))
        places = np.flatnonzero(begins)
        ids += names.take(pa.array(places)).to_pylist()
        starts.append(places + num_rows)
        num_rows += len(names)
        last_id, last_position = names[-1].as_py(), int(positions[-1])
    return TextIndex(ids, np.concatenate([*starts, [num_rows]]))


def name_choices(wanted: str, known: Iterable[str]) -> str:
    """A hint which of the known names were meant."""
    names = list(known)
    close = get_close_matches(wanted, names[:10_000], n=_NUM_NAMED, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(map(repr, close))}"
    more = ", ..." if len(names) > _NUM_NAMED else ""
    return f"there is {', '.join(map(repr, names[:_NUM_NAMED])) or 'none'}{more}"


def read_ids(batch: pa.RecordBatch) -> pa.Array:
    """The ids, which are sure to be strings: a damaged one could lead outside the map."""
    names = batch.column("id")
    try:
        names.validate(full=True)
    except pa.ArrowInvalid as error:
        raise StoreError(f"the ids of the store are damaged: {error}; check the store") from error
    return names


def _find_changes(names: pa.Array) -> Array:
    """Whether each name but the first differs from the one before it."""
    count = len(names) - 1
    differ = pc.not_equal(names.slice(1, count), names.slice(0, count))
    return np.asarray(differ.to_numpy(zero_copy_only=False), dtype=bool)
