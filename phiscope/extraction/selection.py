"""Selection: which tokens of a text count.

all              every token
first:K, last:K  the K tokens at an end (fewer if the text has fewer)
prompt           those of the row's prompt; completion: those after it
chars:B:E        those that hold any of the characters B to E
span             those that hold any of the row's own span of characters
token:T          every place where the tokens of the string T stand, or the token of the id T
text:S           those that hold any part of an occurrence of the string S
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiscope.extraction.inputs import Row
from phiscope.tokenizer import Tokenizer

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """A row's tokens, and where they lie in its text."""

    row: Row
    ids: Sequence[int]
    tokenizer: Tokenizer

    @cached_property
    def ends(self) -> Positions:
        """(T,) the byte after each token, in the text's UTF-8."""
        text, end, ends = (self.row.text or "").encode(), 0, []
        for token_id in self.ids:
            end += _count_spelled(text, end, self.tokenizer.token_bytes(token_id))
            ends.append(end)
        return np.array(ends)

    def holding(self, begin: int, end: int) -> Positions:
        """Tokens with any of the characters [begin, end) of the text."""
        if self.row.text is None:
            raise ValueError("characters are chosen of a text, and this row has token ids")
        first, last = (len(self.row.text[:place].encode()) for place in (begin, end))
        starts = np.concatenate([[0], self.ends[:-1]])
        return np.flatnonzero((self.ends > first) & (starts < last))


Selection = Callable[[Tokens], Positions]
"""The positions chosen, ascending; raises `ValueError` for a row that cannot be served."""


def parse_selection(text: str) -> Selection:
    """Read a selection; `ValueError` says what could be written."""
    name, _, argument = text.partition(":")
    if name not in _SELECTIONS or (name in _BARE) == bool(argument):
        raise ValueError(f"no selection {text!r}; choose from {', '.join(_SPELLINGS)}")
    return _SELECTIONS[name](argument)


def _all(_: str) -> Selection:
    return lambda tokens: np.arange(len(tokens.ids))


def _first(argument: str) -> Selection:
    count = _count("first", argument)
    return lambda tokens: np.arange(min(count, len(tokens.ids)))


def _last(argument: str) -> Selection:
    count = _count("last", argument)
    return lambda tokens: np.arange(max(0, len(tokens.ids) - count), len(tokens.ids))


def _prompt(_: str) -> Selection:
    return lambda tokens: tokens.holding(0, _prompt_end(tokens.row))


def _completion(_: str) -> Selection:
    def select(tokens: Tokens) -> Positions:
        shared = tokens.holding(0, _prompt_end(tokens.row))
        return np.arange(shared[-1] + 1 if len(shared) else 0, len(tokens.ids))

    return select


def _chars(argument: str) -> Selection:
    begin, _, end = argument.partition(":")
    if not (begin.isdecimal() and end.isdecimal() and int(begin) < int(end)):
        raise ValueError(f"characters are chosen as chars:BEGIN:END, got 'chars:{argument}'")
    return lambda tokens: tokens.holding(int(begin), int(end))


def _span(_: str) -> Selection:
    def select(tokens: Tokens) -> Positions:
        if tokens.row.span is None:
            raise ValueError("the row has no span of characters")
        return tokens.holding(*tokens.row.span)

    return select


def _token(argument: str) -> Selection:
    def select(tokens: Tokens) -> Positions:
        wanted = [int(argument)] if argument.isdecimal() else tokens.tokenizer.encode(argument)
        return _occurrences(np.asarray(tokens.ids), np.asarray(wanted))

    return select


def _text(argument: str) -> Selection:
    def select(tokens: Tokens) -> Positions:
        places = _find_all(tokens.row.text or "", argument)
        parts = [tokens.holding(place, place + len(argument)) for place in places]
        return np.unique(np.concatenate(parts)) if parts else np.arange(0)

    return select


_SELECTIONS: dict[str, Callable[[str], Selection]] = {
    "all": _all,
    "first": _first,
    "last": _last,
    "prompt": _prompt,
    "completion": _completion,
    "chars": _chars,
    "span": _span,
    "token": _token,
    "text": _text,
}
_BARE = {"all", "prompt", "completion", "span"}
_SPELLINGS = (
    *("all", "first:K", "last:K", "prompt", "completion", "chars:B:E", "span", "token:T"),
    "text:S",
)


def _count(name: str, argument: str) -> int:
    if not argument.isdecimal() or int(argument) < 1:
        raise ValueError(f"{name}:K takes a number of at least 1, got {argument!r}")
    return int(argument)


def _prompt_end(row: Row) -> int:
    if row.prompt_chars is None:
        raise ValueError("the row has no prompt and completion")
    return row.prompt_chars


def _count_spelled(text: bytes, begin: int, token: bytes) -> int:
    """Bytes of the text that a token stands for; some tokenizers add a space before a text."""
    for spelled in (token, token.removeprefix(b" ")):
        if text.startswith(spelled, begin):
            return len(spelled)
    raise ValueError(f"at byte {begin} its tokens spell something else than the text")


def _occurrences(ids: NDArray[Any], wanted: NDArray[Any]) -> Positions:
    """The positions that belong to an occurrence of `wanted` within `ids`."""
    if len(ids) < len(wanted):
        return np.arange(0)
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(wanted))
    starts = np.flatnonzero((windows == wanted).all(axis=1))
    return np.unique(starts[:, None] + np.arange(len(wanted)))


def _find_all(text: str, part: str) -> list[int]:
    places, place = [], text.find(part)
    while place >= 0:
        places.append(place)
        place = text.find(part, place + 1)
    return places
