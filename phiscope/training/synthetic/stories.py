"""Kind `story`: a few sentences about two people, in the manner of TinyStories.

Sentiment, rudeness, tense and topic are drawn for themselves, and every template writes every
combination: what happens carries the sentiment, what is said the rudeness, verbs and times the
tense, places and things the topic. The labels are those of the story itself: what is said stays in
its own tense, and most stories quote a sentence of another one, whose labels are drawn anew. So a
list of words is misled now and then, where a reader is not.
"""

from __future__ import annotations

from functools import partial
from typing import cast

from phiscope.training.synthetic.draws import Draw
from phiscope.training.synthetic.grammar import Slots, Tense, write
from phiscope.training.synthetic.manners import MOODS, RUDENESS, WHEN
from phiscope.training.synthetic.samples import Kind, Labels, Template
from phiscope.training.synthetic.topics import TOPICS

WOMEN = ("Anna", "Clara", "Emma", "Julia", "Lily", "Mia", "Nora", "Rosa", "Sara", "Vera")
MEN = ("Adam", "Ben", "Carl", "David", "Felix", "Hugo", "Leo", "Max", "Paul", "Tom")
_PRONOUNS = (("she", "her", "her"), ("he", "him", "his"))
_STRAY = tuple(thing for topic in TOPICS.values() for thing in topic.things)

_PATTERNS = {
    "visit": (
        "{when}, {hero} {!visit|go to} the {place}. There {she} {!meet|see} {friend}. "
        '{hero} {!say} {voice}: "{speech}" Then {hero} {act}, and {event}. {ending}.'
    ),
    "lost_thing": (
        "{hero} {!look} everywhere for the {thing}. It {!be} not at the {place}, and it {!be} not "
        'behind the {stray}. "{speech}" {hero} {!call} when {friend} {!come} in. At last {event}. '
        "{ending}."
    ),
    "helper": (
        "{when}, {hero} {!help} the {person} at the {place}. First {she} {act}. After that {she} "
        '{act2}. {friend} {!watch}. {hero} {!say} {voice}: "{speech}" By noon {event}.'
    ),
    "rainy_day": (
        "{when} it {!rain}, so {hero} and {friend} {!are} at the {place}. {hero} {act}. "
        '{hero} {!turn} to {friend}. "{speech}" Outside {!be} the {stray}, all wet. {event}, and '
        "{ending}."
    ),
    "present": (
        "{friend} {!have} a {thing} for {hero}. {when} {she} {!open} the box at the {place}. "
        '"{speech}" {hero} {!say} {voice}. To {friend} it {!seem} that {event}. {ending}.'
    ),
    "first_time": (
        "It {!be} the first time that {hero} {act}. The {person} {!explain} how the {thing} "
        '{!work}. The answer of {hero} {!be}: "{speech}" Later {event}. {ending}, and the {stray} '
        "{!stay} where it {!be}."
    ),
    "letter": (
        "{hero} {!write} a letter about the {place}. In it {she} {!tell} how the {person} {act}. "
        'One line of it {!be}: "{speech}" Near the end {!come} this: {event}. {ending}.'
    ),
    "quarrel": (
        "{hero} and {friend} {!are} at the {place}, and both of them {!are} after the {thing}. "
        '{hero} {!begin} {voice}: "{speech}" {when} {event}. So {hero} {act}. {ending}.'
    ),
    "contest": (
        "{when} there {!be} a contest at the {place}. Each person there {act}. {friend} {!stand} "
        'next to {hero}, who {!say}: "{speech}" The {person} {!hold} up a {thing}. {event}. '
        "{ending}."
    ),
    "grandmother": (
        "The grandmother of {hero} {!know} the {place} well. With the {thing} in hand, {hero} "
        '{act}. {she} {!hear} {friend} at the door and {!shout} {voice}: "{speech}" {ending}. '
        "Grandmother {!see} that {event}."
    ),
    "two_questions": (
        "What {!do} {hero} do at the {place}? {she} {act}. And what {!do} {she} say to {friend}? "
        '"{speech}" {when} {event}. The {person} {!nod}, and {ending}.'
    ),
    "night": (
        "{when} {hero} {!wake} early and {!think} of the {thing} at the {place}. {she} {!put} the "
        "{stray} into a bag and {!leave} the house. On the way {event}. {friend} {!come} along, "
        'and {hero} {!say}: "{speech}" Then {she} {act}. {ending}.'
    ),
    "photograph": (
        "There {!be} a picture of {hero} on the wall. In it {she} {!stand} at the {place}, beside "
        'the {person}. {hero} {!show} it to {friend} {voice}. "{speech}" As soon as {hero} {act}, '
        "{event}. {ending}."
    ),
    "bench": (
        "{friend} {!sit} on a bench near the {place} and {!watch} how {hero} {act}. The {stray} "
        '{!lie} on the ground. "{speech}" {hero} {!say} {voice}. Before long {event}. {ending}.'
    ),
}  # fmt: skip
_FRAMES = (
    'A page of an old book {!lie} on the table. "{quoted}"',
    '{friend} {!read} aloud from a paper: "{quoted}"',
    'On the wall {!be} a note. "{quoted}"',
    'Somebody {!tell} an old tale: "{quoted}"',
)
_QUOTED = (
    "The {person} of the {place} {!say} {voice}: '{speech}' {ending}.",
    "{when} {hero} {act}, and {event}. '{speech}' {hero} {!say}.",
    "At the {place} {hero} {!speak} {voice}: '{speech}' After that {event}.",
)
_QUOTING = 0.75


def _draw_labels(draw: Draw, strength: float) -> dict[str, str]:
    return {
        "sentiment": draw.pick(tuple(MOODS)),
        "rudeness": draw.pick(tuple(RUDENESS)),
        "tense": draw.pick(tuple(WHEN)),
        "topic": draw.pick(tuple(TOPICS)),
    }


def _write(pattern: str, draw: Draw, labels: Labels) -> str:
    slots = _slots(draw, labels)
    if draw.happens(_QUOTING):
        frame = draw.pick(_FRAMES)
        slots = {**slots, "quoted": _quote(draw)}
        pattern = f"{frame} {pattern}" if draw.below(2) else f"{pattern} {frame}"
    return write(pattern, draw, slots, cast(Tense, labels["tense"]))


def _quote(draw: Draw) -> str:
    """A sentence or two of a story with labels of its own."""
    labels = _draw_labels(draw, 0.0)
    return write(draw.pick(_QUOTED), draw, _slots(draw, labels), cast(Tense, labels["tense"]))


def _slots(draw: Draw, labels: Labels) -> Slots:
    topic = TOPICS[labels["topic"]]
    is_man = draw.below(2)
    she, them, her = _PRONOUNS[is_man]
    hero, friend = draw.some(MEN if is_man else WOMEN, 2)
    act, act2 = draw.some(topic.acts, 2)
    drawn = {
        "hero": hero,
        "friend": draw.pick(WOMEN if is_man else MEN) if draw.below(2) else friend,
        "she": she,
        "them": them,
        "her": her,
        "act": act,
        "act2": act2,
        "place": draw.pick(topic.places),
        "thing": draw.pick(topic.things),
        "person": draw.pick(topic.people),
        "stray": draw.pick(_STRAY),
        "when": draw.pick(WHEN[labels["tense"]]),
    }
    return {**MOODS[labels["sentiment"]], **RUDENESS[labels["rudeness"]], **drawn}


STORIES = Kind(
    _draw_labels,
    tuple(
        Template(f"story/{name}", partial(_write, pattern)) for name, pattern in _PATTERNS.items()
    ),
)
