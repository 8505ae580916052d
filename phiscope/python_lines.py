"""Reading Python letter by letter, just well enough to see where a new top-level statement begins.

The text may be unfinished, wrong, or half prose; nothing in it is an error. What counts is which
line starts are real ones (outside strings, brackets and continued lines) and what is indented.
"""

import re
from dataclasses import dataclass

_FENCE = "```"
_CARRY_ON = ("elif", "else", "except", "finally", _FENCE)  # may follow a block in column 0
_NEVER_INSIDE = ("class", "def", "import", _FENCE)  # in column 0, no bracket is really open
_HEADER = re.compile(
    r"(async|case|class|def|elif|else|except|finally|for|if|match|try|while|with)\b"
)
_HEADER_LENGTH = 10


@dataclass
class PythonLines:
    """The state between two letters; `read` each letter in turn."""

    position: int = 0
    pending_from: int | None = 0
    """While the start of a line is undecided: where the blank lines before it begin."""
    is_block: bool = False
    """The last statement belongs to a block, or is the header of one."""
    is_fenced: bool = False
    is_column_0: bool = True
    word: str = ""
    is_inside: bool = False
    """This statement belongs to a block: it is indented, or carries one on."""
    opening: str = ""
    last: str = ""
    depth: int = 0
    is_comment: bool = False
    quote: str = ""
    quote_size: int = 0
    quote_run: int = 0
    is_escaped: bool = False

    def read(self, letter: str) -> bool:
        """Take one letter; True if it shows that its line begins a new top-level statement."""
        is_new = self.pending_from is not None and self._start_line(letter)
        if self.pending_from is None:
            self._read_within(letter)
        self.position += 1
        return is_new

    def _start_line(self, letter: str) -> bool:
        """Take a letter of a line that is blank so far, or may yet turn out to be a keyword."""
        if letter.isspace() and not self.word:
            self.is_column_0 = letter == "\n"
            return False
        is_new = self._decide(letter) if self.is_column_0 else False
        if is_new is None:
            self.word += letter
            return False
        if self.depth == 0:
            carries_on = self.is_block and not is_new
            self.is_inside = carries_on or not self.is_column_0
            self.opening = self.last = self.word
        self.pending_from, self.word = None, ""
        return is_new

    def _decide(self, letter: str) -> bool | None:
        """Whether the line in column 0 begins something new; None if more letters are needed."""
        word = self.word + letter
        keywords = _NEVER_INSIDE if self.depth else _CARRY_ON
        if word != _FENCE and any(keyword.startswith(word) for keyword in keywords):
            return None
        if word == _FENCE:
            self.is_fenced = not self.is_fenced
            return self._leave_brackets() or not self.is_fenced
        is_keyword = self.word in keywords and not (letter.isalnum() or letter == "_")
        if self.depth:
            return is_keyword and self._leave_brackets()
        return self.is_block and not is_keyword and word not in (")", "]", "}")

    def _leave_brackets(self) -> bool:
        """Give up brackets that were never closed; True if they were within a block."""
        was_inside = self.is_block or (self.depth > 0 and self.is_inside)
        self.depth = 0
        return was_inside

    def _read_within(self, letter: str) -> None:
        if self.quote and self._read_string(letter):
            return
        if letter == "\n":
            self._end_line()
        elif not self.is_comment and not letter.isspace():
            self._read_code(letter)
        if len(self.opening) < _HEADER_LENGTH:
            self.opening += letter

    def _read_code(self, letter: str) -> None:
        if letter == "#":
            self.is_comment = True
            return
        if letter in "\"'":
            self.quote, self.quote_size, self.quote_run = letter, 0, 1
        elif letter in "([{":
            self.depth += 1
        elif letter in ")]}":
            self.depth = max(0, self.depth - 1)
        self.last = letter

    def _end_line(self) -> None:
        is_continued = self.last == "\\" and not self.is_comment
        self.is_comment = False
        if is_continued:
            self.last = ""
            return
        if self.depth == 0 and self.last:
            is_header = self.last == ":" and _HEADER.match(self.opening) is not None
            self.is_block = self.is_inside or is_header
        self.pending_from, self.is_column_0 = self.position, True

    def _read_string(self, letter: str) -> bool:
        """Take a letter of a string; False if the string ended before it."""
        if self.quote_size == 0:
            return self._open_string(letter)
        if self.is_escaped:
            self.is_escaped = False
        elif letter == self.quote:
            self.quote_run += 1
            if self.quote_run == self.quote_size:
                self.quote = ""
            return True
        elif letter == "\n" and self.quote_size == 1:
            self.quote = ""
            return False
        else:
            self.is_escaped = letter == "\\"
        self.quote_run = 0
        return True

    def _open_string(self, letter: str) -> bool:
        """Tell one quote from three; two are an empty string."""
        if letter == self.quote:
            self.quote_run += 1
            if self.quote_run == 3:
                self.quote_size, self.quote_run = 3, 0
            return True
        if self.quote_run == 2:
            self.quote = ""
            return False
        self.quote_size, self.quote_run = 1, 0
        return self._read_string(letter)
