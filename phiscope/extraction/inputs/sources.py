"""A source: rows by number, read in one pass as long as the numbers ascend.

A reader gives the rows of its input as functions that read them, so that passing over a row costs
no parsing. The source calls them, and makes each a `Row`.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import pyarrow as pa

from phiscope.errors import InputError
from phiscope.extraction.inputs.fields import ID, Fields, choose_columns, explain_columns
from phiscope.extraction.inputs.records import make_row
from phiscope.extraction.inputs.rows import BadRowError, Row

Unread = Callable[[], object]
"""Reads one row, as columns by name, a text or token ids; `BadRowError` if it cannot be read."""

_NUM_SAMPLES = 100


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How one input is read."""

    open: Callable[[int, Sequence[str]], Iterator[Unread]]
    """The rows from a number on; of tables only these columns. Of no effect until iterated."""
    columns: Mapping[str, bool] | None = None
    """All columns, and whether they hold strings; None: known from the rows alone."""
    count: Callable[[], int] | None = None
    """None: the rows cannot be counted without consuming them."""
    repeatable: bool = True
    """Whether it can be opened again, at any row."""


class Source:
    """Rows of one input. Any range of rows may be asked for; ascending ranges cost one pass in all.

    `repeatable` says whether rows can be read a second time: not those of stdin, a pipe or an
    iterator. `spec` is what of the reading could change rows. For one thread at a time.
    """

    def __init__(self, name: str, format: str, reader: Reader, fields: Fields) -> None:
        self.name = name
        self.repeatable = reader.repeatable
        self._reader = reader
        self._items: Iterator[Unread] | None = None
        self._position = 0
        self._count: int | None = None
        self._fields = self._choose_fields(fields)
        self._columns = _list_wanted(self._fields, reader.columns or ())
        if self._items is None and not reader.repeatable:
            self._items = reader.open(0, self._columns)
        self.spec: Mapping[str, str | None] = {"format": format, **asdict(self._fields)}

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """The rows [start, stop), fewer if the input ends before.

        Raises `InputError` for rows that are gone, and while iterating for an input that turns out
        to be damaged.
        """
        if start < 0 or (stop is not None and stop < start):
            raise ValueError(f"rows [{start}, {stop}) are no range")
        self._check_there(start)
        return self._iterate(itertools.count(start) if stop is None else range(start, stop))

    def count(self) -> int | None:
        """The number of rows; None where that would consume them. May cost a pass of its own."""
        if self._count is None and self._reader.count is not None:
            self._count = self._reader.count()
        return self._count

    def _iterate(self, indices: Iterable[int]) -> Iterator[Row]:
        for index in indices:
            unread = self._pull(index)
            if unread is None:
                return
            yield self._read(index, unread)

    def _pull(self, index: int) -> Unread | None:
        """Move on to a row; None after the last."""
        items = self._items
        if items is None or index < self._position:
            self._check_there(index)
            items, self._position = self._reader.open(index, self._columns), index
        self._items = None  # after an error nothing may go on as if the input had ended
        unread = next(itertools.islice(items, index - self._position, None), None)
        self._items = items
        self._position = index if unread is None else index + 1
        return unread

    def _read(self, index: int, unread: Unread) -> Row:
        try:
            record = unread()
        except BadRowError as error:
            return Row(index=index, id=error.row_id or str(index), fault=str(error))
        return make_row(index, record, self._fields)

    def _check_there(self, index: int) -> None:
        if self.repeatable or (self._items is not None and index >= self._position):
            return
        raise InputError(
            f"{self.name} can be read once, and row {index} was passed;"
            " give a file or a list to read rows again"
        )

    def _choose_fields(self, fields: Fields) -> Fields:
        if self._reader.columns is not None:
            return _choose_by_types(self.name, fields, self._reader.columns)
        items = self._reader.open(0, ())
        samples: Iterator[Unread] = itertools.islice(items, _NUM_SAMPLES)
        if not self.repeatable:
            taken: deque[Unread] = deque()
            self._items = itertools.chain(_drain(taken), items)
            samples = _note_taken(samples, taken)
        return _choose_by_samples(self.name, fields, samples)


@contextmanager
def reading(name: object) -> Iterator[None]:
    """Raise `InputError` naming the input for whatever the system or Arrow cannot read in it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise InputError(f"cannot read {name}: {reason}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _note_taken(items: Iterable[Unread], taken: deque[Unread]) -> Iterator[Unread]:
    for item in items:
        taken.append(item)
        yield item


def _drain(taken: deque[Unread]) -> Iterator[Unread]:
    while taken:
        yield taken.popleft()


def _list_wanted(fields: Fields, columns: Iterable[str]) -> list[str]:
    names = {*fields.names, fields.id or ID}
    return [name for name in columns if name in names]


def _choose_by_types(name: str, fields: Fields, columns: Mapping[str, bool]) -> Fields:
    chosen = choose_columns(fields, columns)
    if chosen is None:
        raise InputError(f"{name}: {explain_columns(fields, columns)}")
    for text in (chosen.text, chosen.prompt, chosen.completion):
        if text is not None and not columns[text]:
            raise InputError(f"{name}: the column {text!r} does not hold strings; name another")
    return chosen


def _choose_by_samples(name: str, fields: Fields, samples: Iterable[Unread]) -> Fields:
    """Choose by the first rows that can be read, as many as it takes to be certain."""
    columns: dict[str, bool] = {}
    has_rows = False
    for record in _read_sound(name, samples):
        has_rows = True
        if isinstance(record, Mapping):
            _note_columns(record, columns)
        elif not fields.names:
            break
        if fields.is_settled_by(columns):
            break
    if not columns and not (fields.names and has_rows):
        return fields
    chosen = choose_columns(fields, columns)
    if chosen is None:
        raise InputError(f"{name}: {explain_columns(fields, columns)}")
    return chosen


def _read_sound(name: str, samples: Iterable[Unread]) -> Iterator[object]:
    """The samples that can be read; `InputError` if there are many and none can."""
    faults = []
    for unread in samples:
        try:
            yield unread()
        except BadRowError as error:
            faults.append(str(error))
    if len(faults) == _NUM_SAMPLES:
        raise InputError(f"{name}: the first {_NUM_SAMPLES} rows are bad, row 0: {faults[0]}")


def _note_columns(record: Mapping[str, object], columns: dict[str, bool]) -> None:
    """Add a record's columns, and which of them have held strings."""
    for column, value in record.items():
        columns[column] = columns.get(column, False) or isinstance(value, str | bytes)
