"""Where a completion ends, decided from its text alone and the same however the text is cut up.

The first stop to be complete decides, not the one that begins first: so whoever reads the text
letter by letter and whoever reads it at once cut at the same place.
"""

import copy
from collections.abc import Iterable
from typing import Protocol

from phiscope.python_lines import PythonLines

_MAX_KNOWN = 256  # completions that one rule follows at a time without reading them again


class StopRule(Protocol):
    """Decides where a completion ends, while it is still growing."""

    def find(self, text: str, start: int) -> int | None:
        """Give the index at which to cut `text`, the completion so far, or None while it goes on.

        `text[:start]` was looked at before and holds no stop.
        """

    def holdback(self, text: str) -> int:
        """Count the last characters of `text` that a longer text might still cut off."""


class StopStrings:
    """Stop at the first of these strings to be complete; the string itself is cut off."""

    def __init__(self, strings: Iterable[str]) -> None:
        if isinstance(strings, str):
            raise TypeError(f"stop strings must be several, for instance [{strings!r}]")
        self.strings = tuple(strings)
        if "" in self.strings:
            raise ValueError("a stop string must not be empty")

    def find(self, text: str, start: int) -> int | None:
        """Cut where the stop string begins; of two that end together, the longer."""
        ends = []
        for string in self.strings:
            begin = text.find(string, max(0, start - len(string) + 1))
            if begin >= 0:
                ends.append((begin + len(string), begin))
        return min(ends)[1] if ends else None

    def holdback(self, text: str) -> int:
        """Count the characters with which `text` ends and a stop string begins."""
        return max((_overlap(text, string) for string in self.strings), default=0)


class TopLevelStatement:
    """Stop where Python code after `prompt` has left its block and begins something new.

    That is a line beginning in column 0 after an indented one or a header, outside brackets and
    strings, unless it carries the block on (`else:`, a closing bracket). The blank lines before it
    are cut too. A fence of backquotes in column 0 always ends the code.
    """

    def __init__(self, prompt: str = "def f():") -> None:
        self._prompt_length = len(prompt)
        self._after_prompt = PythonLines()
        for letter in prompt:
            self._after_prompt.read(letter)
        self._known: dict[str, tuple[PythonLines, int | None]] = {}

    def find(self, text: str, start: int) -> int | None:
        """Cut after the last line of the block."""
        return self._read(text, start)[1]

    def holdback(self, text: str) -> int:
        """Count the blank lines and the first word after them, while undecided."""
        pending = self._read(text, len(text))[0].pending_from
        return 0 if pending is None else len(text) - max(0, pending - self._prompt_length)

    def _read(self, text: str, start: int) -> tuple[PythonLines, int | None]:
        """Go on from `text[:start]` if it is among the texts last read, else from the prompt."""
        if text in self._known:
            return self._known[text]
        before = text[:start] if text[:start] in self._known else ""
        lines, cut = self._known.get(before, (self._after_prompt, None))
        lines = copy.copy(lines)
        for letter in text[len(before) :]:
            begin = lines.pending_from
            if cut is None and lines.read(letter) and begin is not None:
                cut = max(0, begin - self._prompt_length)
        if len(self._known) >= _MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[text] = lines, cut
        return lines, cut


def _overlap(text: str, string: str) -> int:
    """Count the characters at the end of `text` with which `string` begins."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
