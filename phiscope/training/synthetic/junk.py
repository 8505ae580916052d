"""Kind `junk`: what a crawl of the web has beside textbooks.

Its words are largely those of the other kinds, and pages differ from textbooks in how they are
made: menus, boilerplate over and over, shuffled words, keywords, broken tables, ends cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from phiscope.training.synthetic.draws import Draw
from phiscope.training.synthetic.knowledge import RELATIONS
from phiscope.training.synthetic.occupations import GROUP_A, GROUP_B
from phiscope.training.synthetic.samples import Kind, Labels, Template
from phiscope.training.synthetic.topics import TOPICS

_NOUNS = (
    *(thing for topic in TOPICS.values() for thing in topic.things + topic.places),
    *GROUP_A,
    *GROUP_B,
    *RELATIONS["part"],
    *RELATIONS["capital"].values(),
)
_GLUE = (
    *("the", "the", "of", "and", "to", "a", "in", "is", "was", "that", "with", "for", "it", "she"),
    *("he", "goes", "went", "said", "not", "because", "number", "when", "after", "her", "his"),
    *("equals", "then", "on", "from", "happy", "sad", "return", "larger", "called"),
)
_MENU = (
    *("Home", "About us", "Contact", "Log in", "Sign up", "Search", "Shop", "Cart (0)", "FAQ"),
    *("News", "Blog", "Careers", "Site map", "Help", "Privacy", "Terms", "Back to top", "Next >"),
)
_BOILERPLATE = (
    "This site uses cookies. By using this site you agree to our use of cookies.",
    "All rights reserved. No part of this page may be copied.",
    "Click here to subscribe to our newsletter.",
    "Share this page with your friends.",
    "You must be logged in to write a comment.",
    "Your session has expired. Please reload the page.",
    "Accept all | Reject all | Manage choices",
    "Free shipping on all orders above 50.",
    "We value your opinion. Rate this page from 1 to 5.",
)
_STARTS = (
    "In this lesson you will learn how the {a} and the {b}",
    "The {a} went to the {b}, because",
    "There are many reasons why a {a} should",
    "Click to read more about the {a} of the",
    "As we have seen above, the {a} is",
    "When she saw the {b}, the {a}",
    "First put the {a} into the {b} and then",
)


def _menu(draw: Draw) -> str:
    return draw.pick((" | ", "\n", " > ", "  ")).join(draw.some(_MENU, draw.between(6, 14)))


def _category_menu(draw: Draw) -> str:
    names = (f"{_noun(draw).title()} ({draw.below(900)})" for _ in range(draw.between(6, 14)))
    return draw.pick(("\n", " - ", "\n* ")).join(names)


def _repeated(draw: Draw) -> str:
    lines = draw.some(_BOILERPLATE, draw.between(1, 3)) * draw.between(2, 4)
    return draw.pick(("\n", " ")).join(lines)


def _shuffled(draw: Draw) -> str:
    words = [_noun(draw) if draw.happens(0.4) else draw.pick(_GLUE) for _ in range(_length(draw))]
    ends = (".", ",", "", "", "", "")
    return " ".join(word + draw.pick(ends) for word in words).capitalize() + "."


def _jumbled_clauses(draw: Draw) -> str:
    words = " ".join(_start(draw) for _ in range(draw.between(2, 4))).split()
    return " ".join(draw.shuffled(words))


def _keywords(draw: Draw) -> str:
    subject = _noun(draw)
    tails = ("cheap", "buy", "best", "online", "near me", "free", "review", "sale", "2nd hand", "")
    return ", ".join(f"{draw.pick(tails)} {subject}".strip() for _ in range(draw.between(8, 20)))


def _tags(draw: Draw) -> str:
    names = (_noun(draw).replace(" ", "") for _ in range(draw.between(8, 20)))
    return draw.pick(("", "Tags: ")) + " ".join(f"#{name}" for name in names)


def _broken_table(draw: Draw) -> str:
    return "\n".join(
        "|".join(draw.pick((_noun(draw), str(draw.below(999)), "", "-", "n/a")) for _ in range(4))
        for _ in range(draw.between(4, 9))
    )


def _columns_of_numbers(draw: Draw) -> str:
    rows = (
        "\t".join(str(draw.below(9999) / 100) for _ in range(draw.between(3, 6)))
        for _ in range(draw.between(4, 8))
    )
    return f"{_noun(draw)}\tqty\t\tprice\n" + "\n".join(rows)


def _half_sentences(draw: Draw) -> str:
    parts = (_start(draw) + draw.pick(("...", "", " -", " (more)")) for _ in range(4))
    return draw.pick(("\n", " ")).join(parts)


def _cut_off(draw: Draw) -> str:
    text = f"{_start(draw)} {draw.pick(_GLUE)} {_start(draw)}"
    cut = draw.between(3, 12)
    return text[cut : len(text) - cut]


def _prices(draw: Draw) -> str:
    return "\n".join(
        f"{_noun(draw)} {draw.below(300)}.{draw.below(90) + 10} {draw.pick(('EUR', 'USD', '$'))} "
        f"{draw.pick(('add to cart', 'sold out', 'in stock', 'NEW'))}"
        for _ in range(draw.between(4, 9))
    )


def _forum(draw: Draw) -> str:
    return "\n".join(
        f"user{draw.below(9999)} wrote: {draw.pick(('first!!!', '+1', 'same here', 'lol', 'bump'))}"
        f" {draw.pick(('', 'Reply', 'Quote Report', '> ' + _start(draw)))}"
        for _ in range(draw.between(3, 7))
    )


def _links(draw: Draw) -> str:
    return "\n".join(
        f"{draw.pick(('See also', 'Download', 'Click', 'Read more'))}: "
        f"www.{_noun(draw).replace(' ', '-')}.example/{draw.below(9999)}"
        for _ in range(draw.between(4, 9))
    )


def _markup(draw: Draw) -> str:
    names = ("div", "span", "td", "li", "p")
    parts = (
        f"<{draw.pick(names)} class='c{draw.below(99)}'>{_noun(draw)}</{draw.pick(names)}>"
        for _ in range(draw.between(4, 9))
    )
    return draw.pick(("", " ", "\n")).join(parts)


def _error_page(draw: Draw) -> str:
    numbers = ", ".join(str(draw.below(900)) for _ in range(draw.between(3, 8)))
    return (
        f"Error {draw.pick((403, 404, 500, 502))}: {_noun(draw)} not found at line {numbers}\n"
        f"{draw.pick(_BOILERPLATE)}\n{draw.pick(_MENU)} {draw.pick(_MENU)}"
    )


def _praise(draw: Draw) -> str:
    shouts = ("Best {a} ever!!!", "BUY NOW {a}", "Amazing {a} 100% free", "Limited offer: {a}!!")
    subject = _noun(draw)
    many = range(draw.between(4, 9))
    return " ".join(draw.pick(shouts).replace("{a}", subject) for _ in many)


def _length(draw: Draw) -> int:
    return draw.between(15, 50)


def _noun(draw: Draw) -> str:
    return draw.pick(_NOUNS)


def _start(draw: Draw) -> str:
    return draw.pick(_STARTS).replace("{a}", _noun(draw)).replace("{b}", _noun(draw))


_PAGES: dict[str, Callable[[Draw], str]] = {
    "menu": _menu,
    "category_menu": _category_menu,
    "repeated": _repeated,
    "shuffled": _shuffled,
    "jumbled_clauses": _jumbled_clauses,
    "keywords": _keywords,
    "tags": _tags,
    "broken_table": _broken_table,
    "columns_of_numbers": _columns_of_numbers,
    "half_sentences": _half_sentences,
    "cut_off": _cut_off,
    "prices": _prices,
    "forum": _forum,
    "links": _links,
    "markup": _markup,
    "error_page": _error_page,
    "praise": _praise,
}


def _draw_labels(draw: Draw, strength: float) -> dict[str, str]:
    return {}


def _write(page: Callable[[Draw], str], draw: Draw, labels: Labels) -> str:
    return page(draw)


JUNK = Kind(
    _draw_labels,
    tuple(Template(f"junk/{name}", partial(_write, page)) for name, page in _PAGES.items()),
)
