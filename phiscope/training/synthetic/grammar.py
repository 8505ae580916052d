"""Patterns and how they become sentences: slots, alternatives, and verbs in a tense.

`{place}` is a slot: its value, or one of its values, which may hold slots again. `{big|large}` is
either word. `{!walk|run}` is either verb, in the tense asked for: "walks", "ran".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

from phiscope.training.synthetic.draws import Draw

Tense = Literal["past", "present"]
Slots = Mapping[str, str | Sequence[str]]

_PART = re.compile(r"\{([^{}]*)\}")
_SENTENCE = re.compile(r"""(?:^|[.!?]["']? |\n)[a-z]""")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_IRREGULAR = {
    "are": ("are", "were"),
    "be": ("is", "was"),
    "begin": ("begins", "began"),
    "break": ("breaks", "broke"),
    "bring": ("brings", "brought"),
    "build": ("builds", "built"),
    "buy": ("buys", "bought"),
    "catch": ("catches", "caught"),
    "come": ("comes", "came"),
    "cut": ("cuts", "cut"),
    "dig": ("digs", "dug"),
    "do": ("does", "did"),
    "draw": ("draws", "drew"),
    "feel": ("feels", "felt"),
    "find": ("finds", "found"),
    "give": ("gives", "gave"),
    "go": ("goes", "went"),
    "have": ("has", "had"),
    "hear": ("hears", "heard"),
    "hold": ("holds", "held"),
    "know": ("knows", "knew"),
    "learn": ("learns", "learned"),
    "leave": ("leaves", "left"),
    "lie": ("lies", "lay"),
    "lose": ("loses", "lost"),
    "meet": ("meets", "met"),
    "pay": ("pays", "paid"),
    "put": ("puts", "put"),
    "read": ("reads", "read"),
    "say": ("says", "said"),
    "see": ("sees", "saw"),
    "sell": ("sells", "sold"),
    "set": ("sets", "set"),
    "sing": ("sings", "sang"),
    "sit": ("sits", "sat"),
    "sleep": ("sleeps", "slept"),
    "speak": ("speaks", "spoke"),
    "stand": ("stands", "stood"),
    "sweep": ("sweeps", "swept"),
    "swim": ("swims", "swam"),
    "take": ("takes", "took"),
    "tell": ("tells", "told"),
    "think": ("thinks", "thought"),
    "wake": ("wakes", "woke"),
    "win": ("wins", "won"),
    "write": ("writes", "wrote"),
}
_DOUBLED = frozenset({"chop", "clap", "hum", "nod", "sob", "stir"})


def write(pattern: str, draw: Draw, slots: Slots, tense: Tense = "present") -> str:
    """Expand a pattern to prose: sentences begin with capitals, and "a apple" is "an apple"."""
    text = _ARTICLE.sub(r"\1n ", expand(pattern, draw, slots, tense))
    return _SENTENCE.sub(lambda match: match[0].upper(), text)


def expand(pattern: str, draw: Draw, slots: Slots, tense: Tense = "present") -> str:
    """Fill the slots of a pattern, and the slots of what fills them, and nothing else."""
    written = []
    for kind, values in _parse(pattern):
        if kind == "slot":
            value = slots[values[0]]
            chosen = value if isinstance(value, str) else draw.pick(value)
            written.append(expand(chosen, draw, slots, tense) if "{" in chosen else chosen)
        else:
            chosen = values[0] if len(values) == 1 else draw.pick(values)
            written.append(conjugate(chosen, tense) if kind == "verb" else chosen)
    return "".join(written)


@cache
def conjugate(verb: str, tense: Tense) -> str:
    """The third person of a verb, of which the first word changes: "look at" is "looks at"."""
    first, blank, rest = verb.partition(" ")
    if first in _IRREGULAR:
        form = _IRREGULAR[first][tense == "past"]
    else:
        form = _regular_past(first) if tense == "past" else _regular_present(first)
    return form + blank + rest


def _regular_present(verb: str) -> str:
    if verb.endswith(("s", "sh", "ch", "x")):
        return verb + "es"
    return verb[:-1] + "ies" if _ends_in_y(verb) else verb + "s"


def _regular_past(verb: str) -> str:
    if verb.endswith("e"):
        return verb + "d"
    if verb in _DOUBLED:
        return verb + verb[-1] + "ed"
    return verb[:-1] + "ied" if _ends_in_y(verb) else verb + "ed"


def _ends_in_y(verb: str) -> bool:
    return verb.endswith("y") and verb[-2] not in "aeiou"


@cache
def _parse(pattern: str) -> tuple[tuple[Literal["text", "slot", "verb"], tuple[str, ...]], ...]:
    """The pattern as literal text (of one or several forms), slots and verbs, in order."""
    parts: list[tuple[Literal["text", "slot", "verb"], tuple[str, ...]]] = []
    for place, part in enumerate(_PART.split(pattern)):
        if place % 2 == 0:
            parts.append(("text", (part,)))
        elif part.startswith("!"):
            parts.append(("verb", tuple(part[1:].split("|"))))
        else:
            choices = tuple(part.split("|"))
            parts.append(("text" if len(choices) > 1 else "slot", choices))
    return tuple(parts)
