"""Fields: which columns mean what."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

ID = "id"
TEXT = "text"
IDS = ("input_ids", "token_ids")


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Names of columns; None takes the default.

    Without `text`, `ids` and `prompt`, the rows are the column "text"; or else the token ids of
    "input_ids" or "token_ids"; or else the only column of strings.
    """

    text: str | None = None
    ids: str | None = None
    """Token ids instead of text: lists of integers, also as JSON in a string."""
    prompt: str | None = None
    """The text is this column followed by `completion`."""
    completion: str | None = None
    id: str | None = None
    """Default: "id", if a row has it."""
    label: str | None = None
    span: str | None = None
    """Characters of the text, as [begin, end]."""

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("a prompt column and a completion column go together")
        if [self.text, self.ids, self.prompt].count(None) < 2:
            raise ValueError("rows come from one of text, ids, and prompt with completion")
        if self.ids is not None and self.span is not None:
            raise ValueError("a span counts characters of a text, and token ids have none")
        if "" in self.names:
            raise ValueError("the name of a column is empty")

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that were named."""
        return tuple(name for name in vars(self).values() if name is not None)

    @property
    def has_content(self) -> bool:
        """Whether it was said where texts or token ids come from."""
        return [self.text, self.ids, self.prompt].count(None) < 3

    def is_settled_by(self, columns: Iterable[str]) -> bool:
        """Whether further columns could not change the choice."""
        there = set(columns)
        return there.issuperset(self.names) and (self.has_content or TEXT in there)


def choose_columns(fields: Fields, columns: Mapping[str, bool]) -> Fields | None:
    """Settle where the rows come from, of columns that hold strings or not; None if none fits."""
    if any(name not in columns for name in fields.names):
        return None
    if fields.has_content:
        return fields
    if TEXT in columns:
        return replace(fields, text=TEXT)
    ids = next((name for name in IDS if name in columns), None)
    if ids is not None and fields.span is None:
        return replace(fields, ids=ids)
    others = {ID, *fields.names}
    strings = [name for name, is_string in columns.items() if is_string and name not in others]
    return replace(fields, text=strings[0]) if len(strings) == 1 else None


def explain_columns(fields: Fields, columns: Iterable[str]) -> str:
    """Say why no columns could be chosen, and what there is."""
    there = list(columns)
    if not there:
        return "its rows have no columns, so none can be named"
    absent = next((name for name in fields.names if name not in there), None)
    if absent is not None:
        return f"no column {absent!r}; there are {list_names(there)}"
    return f"no column {TEXT!r}; name the one that holds the texts, of {list_names(there)}"


def list_names(names: Iterable[object]) -> str:
    """Names for a message, the first few of them, made printable."""
    remaining = iter(names)
    shown = [ascii(str(name)[:40]) for name in islice(remaining, 10)]
    shown += ["..."] if next(remaining, None) is not None else []
    return ", ".join(shown) or "none"
