"""Kind `fact`: statements of a textbook's manner, half of them false.

A false statement names what a true one of the same template might name, so words alone tell
nothing: to know the truth one has to know the fact. Every template has a wording and a subject.
"""

from __future__ import annotations

from functools import partial

from phiscope.training.synthetic import knowledge
from phiscope.training.synthetic.draws import Draw
from phiscope.training.synthetic.grammar import write
from phiscope.training.synthetic.knowledge import Maker, relate
from phiscope.training.synthetic.samples import Kind, Labels, Template

TRUTHS = ("false", "true")
_LEADS = {
    "lead": (
        *("", "", "", "As the book says, ", "Remember: ", "A child soon learns this: "),
        *("It is written on the board: ", "Here is a fact. ", "Lesson {n}. ", "Note that "),
    ),
    "n": tuple(map(str, range(1, 40))),
}

_PATTERNS: dict[str, tuple[Maker, str]] = {
    "sum_equals": (knowledge.add, "{lead}{a} plus {b} {equals|is|makes} {value}."),
    "sum_apples": (
        knowledge.add,
        "{lead}if one basket holds {a} {apples|pears|eggs} and another one {b}, then both together "
        "hold {value}.",
    ),
    "sum_result": (knowledge.add, "{lead}the {sum|total} of {a} and {b} comes to {value}."),
    "difference_left": (
        knowledge.subtract,
        "{lead}take {b} {coins|beans} away from {a}, and {value} are left.",
    ),
    "difference_is": (
        knowledge.subtract,
        "{lead}the difference between {a} and {b} is {value}.",
    ),
    "product_rows": (
        knowledge.multiply,
        "{lead}{a} rows of {b} {chairs|trees} make {value} in all.",
    ),
    "product_times": (knowledge.multiply, "{lead}{a} times {b} {is|equals} {value}."),
    "double_half": (knowledge.double, "{lead}half of {value} is {a}."),
    "double_twice": (knowledge.double, "{lead}twice {a} {is|gives} {value}."),
    "parity": (knowledge.parity, "{lead}the number {a} is {value}."),
    "order_numbers": (knowledge.compare, "{lead}{large} is {larger|greater} than {small}."),
    "order_count": (
        knowledge.compare,
        "{lead}when one counts upwards, {small} comes before {large}.",
    ),
    "order_sizes": (
        knowledge.compare_sizes,
        "{lead}a grown {large} is {larger|heavier} than a grown {small}.",
    ),
    "order_sizes_small": (
        knowledge.compare_sizes,
        "{lead}next to a {large}, a {small} is {tiny|the smaller one}.",
    ),
    "order_speeds": (
        knowledge.compare_speeds,
        "{lead}at full speed a {large} {overtakes|is faster than} a {small}.",
    ),
    "order_days": (knowledge.follow_day, "{lead}the day after {thing} is {value}."),
    "order_months": (
        knowledge.follow_month,
        "{lead}the month of {thing} is followed by {value}.",
    ),
    "order_number_names": (
        knowledge.follow_number,
        "{lead}in the row of numbers, {value} stands right behind {thing}.",
    ),
    "colour_is": (relate("colour"), "{lead}the {colour|usual colour} of {thing} is {value}."),
    "colour_paint": (
        relate("colour"),
        "{lead}who wants to paint {thing} {needs|takes} {value} paint.",
    ),
    "part_of": (relate("part"), "{lead}a {thing} is a part of a {value}."),
    "part_has": (relate("part"), "{lead}a {value} without a {thing} is not complete."),
    "group_is": (relate("group"), "{lead}a {thing} is a {value}."),
    "group_belongs": (relate("group"), "{lead}every {thing} counts as a {value}."),
    "opposite_is": (relate("opposite"), "{lead}the opposite of {thing} is {value}."),
    "opposite_not": (relate("opposite"), "{lead}what is not {thing} but the reverse is {value}."),
    "capital_of": (relate("capital"), "{lead}{value} is the capital of {thing}."),
    "capital_seat": (relate("capital"), "{lead}the government of {thing} sits in {value}."),
    "young_called": (relate("young"), "{lead}the young of a {thing} is called a {value}."),
    "young_grows": (relate("young"), "{lead}a {value} grows up to be a {thing}."),
    "count_of": (relate("count"), "{lead}the number of {thing} is {value}."),
    "home_lives": (relate("home"), "{lead}the home of {thing} is {value}."),
}


def _draw_labels(draw: Draw, strength: float) -> dict[str, str]:
    return {"truth": draw.pick(TRUTHS)}


def _write(maker: Maker, pattern: str, draw: Draw, labels: Labels) -> str:
    return write(pattern, draw, {**_LEADS, **maker(draw, labels["truth"] == "true")})


FACTS = Kind(
    _draw_labels,
    tuple(
        Template(f"fact/{name}", partial(_write, maker, pattern))
        for name, (maker, pattern) in _PATTERNS.items()
    ),
)
