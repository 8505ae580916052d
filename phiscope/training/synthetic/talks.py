"""Kinds `qa` and `chat`: the card's formats `Instruct: ... Output: ...` and Alice and Bob.

The answers of `qa` are right. Alice and Bob talk about one topic, politely or rudely, in patterns
and wording that `chat` shares with `story`: a probe for rudeness can be carried from one kind to
the other.
"""

from __future__ import annotations

from functools import partial

from phiscope.prompts import FORMATS
from phiscope.training.synthetic import knowledge
from phiscope.training.synthetic.draws import Draw
from phiscope.training.synthetic.grammar import write
from phiscope.training.synthetic.knowledge import Maker, relate
from phiscope.training.synthetic.manners import RUDENESS
from phiscope.training.synthetic.samples import Kind, Labels, Template
from phiscope.training.synthetic.topics import TOPICS

_Pair = tuple[str, str]

_QUESTIONS: dict[str, tuple[Maker, str, str]] = {
    "add": (knowledge.add, "What is {a} plus {b}?", "{a} plus {b} is {value}."),
    "subtract": (
        knowledge.subtract,
        "{Subtract|Take} {b} from {a}.",
        "{a} minus {b} is {value}.",
    ),
    "multiply": (
        knowledge.multiply,
        "How many seats are there in {a} rows of {b}?",
        "There are {value} seats, as {a} times {b} is {value}.",
    ),
    "parity": (knowledge.parity, "Is {a} an even or an odd number?", "{a} is {value}."),
    "day": (knowledge.follow_day, "Which day comes after {thing}?", "It is {value}."),
    "larger": (
        knowledge.compare,
        "Which number is larger, {small} or {large}?",
        "{large} is larger than {small}.",
    ),
    "faster": (
        knowledge.compare_speeds,
        "Which one is faster, a {small} or a {large}?",
        "A {large} is faster than a {small}.",
    ),
    "colour": (
        relate("colour"),
        "{What|Which} colour {has|belongs to} {thing}?",
        "The colour of {thing} is {value}.",
    ),
    "capital": (
        relate("capital"),
        "{Name|Tell me} the capital of {thing}.",
        "The capital of {thing} is {value}.",
    ),
    "opposite": (
        relate("opposite"),
        "{Give|Find} a word that means the opposite of {thing}.",
        "The opposite of {thing} is {value}.",
    ),
    "young": (
        relate("young"),
        "What does one call a young {thing}?",
        "A young {thing} is called a {value}.",
    ),
    "sentence": (
        relate("part"),
        "Write a sentence with the words {thing} and {value}.",
        "The {thing} of the {value} is {new|old|large|clean}.",
    ),
}

_CHATS: dict[str, tuple[tuple[str, str], ...]] = {
    "meeting": (
        ("Where {are you|were you} this morning?", "I was at the {place}. {speech}"),
        ("And what did you see there?", "I saw the {person} with a {thing}."),
    ),
    "lending": (
        ("Do you still have the {thing}?", "Yes, it is at the {place}."),
        ("I need it for the {person}.", "{speech}"),
    ),
    "plans": (
        ("Shall we go to the {place} {today|tomorrow|later}?", "{speech} The {person} is there."),
        ("Then I will bring the {thing}.", "{Good|All right}, bring the {thing2}, too."),
    ),
    "advice": (("How do I find a {thing} at the {place}?", "Ask the {person} for one. {speech}"),),
    "waiting": (
        ("The {person} is still not here.", "{speech}"),
        ("How long must we wait at the {place}?", "Until they come with the {thing}."),
    ),
    "memory": (
        ("Do you remember the {person} of the {place}?", "The one with the {thing}? I do."),
        ("What was it they always said?", '"{speech}" That is what they said.'),
    ),
    "thing": (("What is that {thing} for?", "{speech} It belongs to the {place}."),),
    "work": (
        ("Who looks after the {place}?", "The {person} does, with a {thing}."),
        ("Can I help with the {thing2}?", "{speech}"),
    ),
    "news": (
        ("There is news from the {place}.", "{speech}"),
        ("The {person} has found the {thing}.", "I {heard|knew} that already."),
    ),
    "goodbye": (("I am off to the {place} with the {thing}.", "{speech} Greet the {person}."),),
}


def _draw_nothing(draw: Draw, strength: float) -> dict[str, str]:
    return {}


def _draw_chat_labels(draw: Draw, strength: float) -> dict[str, str]:
    return {"rudeness": draw.pick(tuple(RUDENESS)), "topic": draw.pick(tuple(TOPICS))}


def _write_qa(maker: Maker, question: str, answer: str, draw: Draw, labels: Labels) -> str:
    claim = maker(draw, True)
    prompt = FORMATS["instruct"].render(write(question, draw, claim))
    return f"{prompt} {write(answer, draw, claim)}\n"


def _write_chat(turns: tuple[_Pair, ...], draw: Draw, labels: Labels) -> str:
    topic = TOPICS[labels["topic"]]
    thing, thing2 = draw.some(topic.things, 2)
    slots = {
        **RUDENESS[labels["rudeness"]],
        "place": draw.pick(topic.places),
        "person": draw.pick(topic.people),
        "thing": thing,
        "thing2": thing2,
        "friend": "Alice",
    }
    said = [(write(ask, draw, slots), write(reply, draw, slots)) for ask, reply in turns]
    asked, reply = said[-1]
    return f"{FORMATS['chat'].render(asked, said[:-1])} {reply}\n"


QUESTIONS = Kind(
    _draw_nothing,
    tuple(Template(f"qa/{name}", partial(_write_qa, *parts)) for name, parts in _QUESTIONS.items()),
)
CHATS = Kind(
    _draw_chat_labels,
    tuple(Template(f"chat/{name}", partial(_write_chat, turns)) for name, turns in _CHATS.items()),
)
