"""CompletionText: the text of a completion as it grows, cut exactly where it stops.

What has been released never changes: the end of the text that a stop might still cut off is held
back, so no part of a stop string is ever seen by a reader of the stream.
"""

from phiscope.generation.options import GenerationOptions
from phiscope.stops import StopRule, StopStrings
from phiscope.tokenizer import Detokenizer


class CompletionText:
    """Turns token ids into text and says when a stop string or rule ends it."""

    def __init__(self, options: GenerationOptions, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._rules: list[StopRule] = list(options.stop_rules)
        if options.stop:
            self._rules.insert(0, StopStrings(options.stop))
        self._text = ""
        self._num_released = 0
        self.stop_reason: str | None = None
        """The stop string that ended the text, or the name of the rule's type."""

    @property
    def text(self) -> str:
        """All text so far, without a stop string; the end may yet be cut."""
        return self._text

    @property
    def has_stopped(self) -> bool:
        return self.stop_reason is not None

    def push(self, token_id: int) -> str:
        """Add a token and give the text that is certain by now, "" if there is none."""
        self._grow(self._detokenizer.push(token_id))
        held = 0 if self.has_stopped else self._count_held()
        return self._release(len(self._text) - held)

    def finish(self) -> str:
        """End the completion and give the rest of its text."""
        if not self.has_stopped:
            self._grow(self._detokenizer.finish())
        return self._release(len(self._text))

    def abandon(self) -> str:
        """Give the text that was held back, without asking whether it stops."""
        return self._release(len(self._text))

    def _grow(self, piece: str) -> None:
        start = len(self._text)
        self._text += piece
        if piece and self._rules:
            self._cut(start)

    def _cut(self, start: int) -> None:
        found = [(rule.find(self._text, start), rule) for rule in self._rules]
        ends = [(cut, self._name(rule, cut)) for cut, rule in found if cut is not None]
        if ends:
            cut, self.stop_reason = min(ends, key=lambda end: end[0])
            self._text = self._text[:cut]

    def _name(self, rule: StopRule, cut: int) -> str:
        if not isinstance(rule, StopStrings):
            return type(rule).__name__
        matches = (string for string in rule.strings if self._text.startswith(string, cut))
        return min(matches, key=len)

    def _count_held(self) -> int:
        return max((rule.holdback(self._text) for rule in self._rules), default=0)

    def _release(self, end: int) -> str:
        start = self._num_released
        self._num_released = max(start, end)
        return self._text[start : self._num_released]
