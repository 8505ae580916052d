"""The model card's prompt formats, each with the rules that say where its answer ends.

Phi is a base model: it knows no turns, and after its answer it goes on with the next exercise, the
other speaker or another function. A format therefore has two halves, how to ask and where to stop.
The end token stops every format, without being named here. None of them writes special tokens, so
a prompt that holds strangers' text can be encoded with `allow_special=False`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from phiscope.stops import StopRule, StopStrings, TopLevelStatement

__all__ = [
    "FORMATS",
    "PromptFormat",
    "StopRule",
    "StopStrings",
    "TopLevelStatement",
    "make_chat_format",
    "select_format",
]


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How to ask, and where the answer ends; the completion follows right after the prompt."""

    name: str
    about: str
    """One line for help texts."""
    before: str = ""
    after: str = ""
    has_turns: bool = False
    """Turns end with a line; finished ones may come before the new one."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer."""
    stops_at_statement: bool = False
    """The answer ends where its block of Python does."""

    def render(self, text: str, history: Iterable[tuple[str, str]] = ()) -> str:
        """Write the prompt for `text`, after the (text, reply) pairs of `history`.

        Formats with turns take off white space around texts and replies, as a prompt that ends in a
        blank is one that the model has hardly seen; the others leave `text` as it is.
        """
        turns = list(history)
        if not self.has_turns:
            if turns:
                raise ValueError(f"format {self.name!r} has no history; use 'instruct' or 'chat'")
            return text
        past = [f"{self._turn(asked)} {reply.strip()}\n" for asked, reply in turns]
        return "".join(past) + self._turn(text)

    def stop_rules(self, prompt: str) -> tuple[StopRule, ...]:
        """Make all rules, `stop` among them, that end the completion of a rendered prompt."""
        rules: list[StopRule] = [StopStrings(self.stop)] if self.stop else []
        if self.stops_at_statement:
            rules.append(TopLevelStatement(prompt))
        return tuple(rules)

    def _turn(self, text: str) -> str:
        return f"{self.before}{text.strip()}{self.after}"


def make_chat_format(user: str = "Alice", model: str = "Bob") -> PromptFormat:
    """Make the card's chat format, between two people of these names."""
    for name in (user, model):
        if not name.strip() or "\n" in name or ":" in name or name != name.strip():
            raise ValueError(f"a name in a chat is one line without a colon, got {name!r}")
    if user == model:
        raise ValueError(f"the two in a chat need different names, got {user!r} twice")
    return PromptFormat(
        name="chat",
        about=f"a talk between {user} and {model}, who answers; ends when the next one speaks",
        before=f"{user}: ",
        after=f"\n{model}:",
        has_turns=True,
        stop=(f"\n{user}:", f"\n{model}:"),
    )


_FORMATS = (
    PromptFormat(
        name="qa",
        about="the bare question; ends where another instruction begins",
        stop=("\nInstruct:",),
    ),
    PromptFormat(
        name="instruct",
        about="Instruct: ... Output: ..., for shorter answers; ends at the next Instruct:",
        before="Instruct: ",
        after="\nOutput:",
        has_turns=True,
        stop=("\nInstruct:",),
    ),
    make_chat_format(),
    PromptFormat(
        name="code",
        about="Python to be continued; ends where a new top-level statement begins",
        stops_at_statement=True,
    ),
)
FORMATS = {item.name: item for item in _FORMATS}


def select_format(name: str) -> PromptFormat:
    """Look a format up by its name."""
    if name not in FORMATS:
        raise ValueError(f"no prompt format {name!r}; choose from {sorted(FORMATS)}")
    return FORMATS[name]
