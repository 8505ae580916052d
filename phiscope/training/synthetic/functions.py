"""The functions that exercises ask for: a task, ways to write it, and what the result must be.

`{x}` is the parameter, `{k}` a constant. The reference beside the bodies is written for itself, so
that a body is checked against something else than itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Domain:
    """What a function is given: names for the parameter, and arguments of examples."""

    ending: str
    parameters: tuple[str, ...]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Function:
    """A function of one argument."""

    domain: Domain
    names: tuple[str, ...]
    tasks: tuple[str, ...]
    reference: Callable[[Any, int], Any]
    """The result for an argument and the constant."""
    bodies: tuple[str, ...]
    constants: tuple[int, ...] = (0,)


_NUMBERS = Domain(
    "_of_list",
    ("numbers", "values", "items"),
    ([1, 5, 9], [4, -2, 7, 4], [], [10, 3, 8, 3, 6], [2, 2]),
)
_WORDS = Domain(
    "_in_list",
    ("words", "names", "strings"),
    (["pear", "fig"], ["a", "tea", "oak", "tea"], [], ["stone", "sun", "river"]),
)
_TEXT = Domain(
    "_of_text",
    ("text", "line", "string"),
    ("hello", "a red apple", "", "Level", "one two three"),
)
_COUNT = Domain("_of_number", ("n", "number", "count"), (0, 1, 4, 7, 12, 30))


def _filtered(condition: str) -> tuple[str, str]:
    """A choice from a list, as a comprehension and as a loop."""
    return (
        f"return [one for one in {{x}} if {condition}]",
        f"chosen = []\nfor one in {{x}}:\n    if {condition}:\n        chosen.append(one)\n"
        "return chosen",
    )


def _mapped(value: str) -> tuple[str, str]:
    """Each element changed, as a comprehension and as a loop."""
    return (
        f"return [{value} for one in {{x}}]",
        f"changed = []\nfor one in {{x}}:\n    changed.append({value})\nreturn changed",
    )


def _counted(condition: str) -> tuple[str, str]:
    """How many elements fulfil a condition, as a sum and as a loop."""
    return (
        f"return sum(1 for one in {{x}} if {condition})",
        f"total = 0\nfor one in {{x}}:\n    if {condition}:\n        total += 1\nreturn total",
    )


def _define(
    domain: Domain,
    name: str,
    tasks: tuple[str, ...],
    reference: Callable[[Any, int], Any],
    *bodies: str,
    constants: tuple[int, ...] = (0,),
) -> Function:
    names = (name, name + domain.ending)
    return Function(domain, names, tasks, reference, bodies, constants)


FUNCTIONS: dict[str, Function] = {
    "above": _define(
        _NUMBERS,
        "numbers_above_{k}",
        ("Return the elements of `{x}` that are greater than {k}.",
         "Given a list, keep what lies above {k}."),
        lambda x, k: list(filter(lambda one: k < one, x)),
        *_filtered("one > {k}"),
        constants=(0, 2, 3, 4, 5, 8),
    ),
    "multiples": _define(
        _NUMBERS,
        "multiples_of_{k}",
        ("Find all multiples of {k} in `{x}`.", "Return those elements that {k} divides."),
        lambda x, k: list(filter(lambda one: one // k * k == one, x)),
        *_filtered("one % {k} == 0"),
        constants=(2, 3, 4, 5),
    ),
    "add": _define(
        _NUMBERS,
        "add_{k}_to_each",
        ("Add {k} to every element of `{x}`.", "Return a new list, each element larger by {k}."),
        lambda x, k: list(map(k.__add__, x)),
        *_mapped("one + {k}"),
        constants=(1, 2, 3, 7, 10),
    ),
    "scale": _define(
        _NUMBERS,
        "multiply_by_{k}",
        ("Multiply each element of `{x}` by {k}.", "Return the list with all elements times {k}."),
        lambda x, k: list(map(k.__mul__, x)),
        *_mapped("one * {k}"),
        constants=(2, 3, 4, 6, 9),
    ),
    "count_below": _define(
        _NUMBERS,
        "count_below_{k}",
        ("Count the elements of `{x}` that are less than {k}.",
         "How many elements of the list are below {k}?"),
        lambda x, k: len(list(filter(lambda one: k > one, x))),
        *_counted("one < {k}"),
        constants=(0, 3, 4, 6, 9),
    ),
    "count_odd": _define(
        _NUMBERS,
        "count_odd",
        ("Count the odd numbers in `{x}`.", "Return how many elements of the list are odd."),
        lambda x, k: len(x) - len(list(filter(lambda one: one // 2 * 2 == one, x))),
        *_counted("one % 2 == 1"),
    ),
    "sum_of_squares": _define(
        _NUMBERS,
        "sum_of_squares",
        ("Return the sum of the squares of `{x}`.", "Square each element and add up the squares."),
        lambda x, k: sum(one**2 for one in x),
        "return sum(one * one for one in {x})",
        "total = 0\nfor one in {x}:\n    total += one * one\nreturn total",
    ),
    "spread": _define(
        _NUMBERS,
        "spread",
        ("Return the largest element less the smallest one, or 0 for an empty list.",
         "How far apart are the smallest and the largest of `{x}`? Give 0 if there is none."),
        lambda x, k: sorted(x)[-1] - sorted(x)[0] if x else 0,
        "if not {x}:\n    return 0\nreturn max({x}) - min({x})",
        "ordered = sorted({x})\nreturn ordered[-1] - ordered[0] if ordered else 0",
    ),
    "unique": _define(
        _NUMBERS,
        "without_repeats",
        ("Remove repeated elements of `{x}` and keep the order.",
         "Return each element once, in the order of the list."),
        lambda x, k: list(dict.fromkeys(x)),
        "seen = set()\nkept = []\nfor one in {x}:\n    if one not in seen:\n        seen.add(one)\n"
        "        kept.append(one)\nreturn kept",
        "kept = []\nfor one in {x}:\n    if one not in kept:\n        kept += [one]\nreturn kept",
    ),
    "running_total": _define(
        _NUMBERS,
        "running_total",
        ("Return the running totals of `{x}`.", "Element i of the result is the sum up to i."),
        lambda x, k: [sum(x[: end + 1]) for end in range(len(x))],
        "total = 0\ntotals = []\nfor one in {x}:\n    total += one\n    totals.append(total)\n"
        "return totals",
        "return [sum({x}[:end + 1]) for end, _ in enumerate({x})]",
    ),
    "is_sorted": _define(
        _NUMBERS,
        "is_sorted",
        ("Tell whether `{x}` is in ascending order.", "Is no element less than the one before?"),
        lambda x, k: x == sorted(x),
        "for place in range(1, len({x})):\n    if {x}[place] < {x}[place - 1]:\n"
        "        return False\nreturn True",
        "return all(a <= b for a, b in zip({x}, {x}[1:]))",
    ),
    "every_kth": _define(
        _NUMBERS,
        "every_{k}th",
        ("Take one element of `{x}` and leave out the next {k} less one, and so on.",
         "Return the elements at the places 0, {k}, twice {k} and so forth."),
        lambda x, k: list(map(x.__getitem__, range(0, len(x), k))),
        "return {x}[::{k}]",
        "return [one for place, one in enumerate({x}) if place % {k} == 0]",
        constants=(4, 5, 6, 7),
    ),
    "longer": _define(
        _WORDS,
        "longer_than_{k}",
        ("Return the words of `{x}` that have more than {k} letters.",
         "Keep the words that are longer than {k} letters."),
        lambda x, k: list(filter(lambda one: one[k:], x)),
        *_filtered("len(one) > {k}"),
        constants=(1, 2, 3, 4),
    ),
    "lengths": _define(
        _WORDS,
        "word_lengths",
        ("Return the length of each word.", "How long are the words of `{x}`? Return a list."),
        lambda x, k: list(map(len, x)),
        *_mapped("len(one)"),
    ),
    "longest": _define(
        _WORDS,
        "longest",
        ("Find the longest word, the first of them if there are several.",
         "Return the word of `{x}` with the most letters, or an empty string."),
        lambda x, k: max(x, key=len, default=""),
        "best = ''\nfor one in {x}:\n    if len(one) > len(best):\n        best = one\nreturn best",
        "if not {x}:\n    return ''\nreturn sorted({x}, key=len, reverse=True)[0]",
    ),
    "count_each": _define(
        _WORDS,
        "count_each",
        ("Count how often each word occurs in `{x}`.", "Return a dict from words to counts."),
        lambda x, k: {one: sum(one == other for other in x) for one in x},
        "counts = {}\nfor one in {x}:\n    counts[one] = counts.get(one, 0) + 1\nreturn counts",
        "return {one: {x}.count(one) for one in {x}}",
    ),
    "initials": _define(
        _WORDS,
        "first_letters",
        ("Return the first letters of each word, {k} of them.",
         "Shorten the words of `{x}` to {k} letters."),
        lambda x, k: ["".join(list(one)[:k]) for one in x],
        *_mapped("one[:{k}]"),
        constants=(1, 2, 3),
    ),
    "vowels": _define(
        _TEXT,
        "count_vowels",
        ("Count the vowels in `{x}`.", "Return how many of the letters are a, e, i, o or u."),
        lambda x, k: len([one for one in x if one in set("aeiouAEIOU")]),
        *_counted("one.lower() in 'aeiou'"),
    ),
    "reverse": _define(
        _TEXT,
        "backwards",
        ("Return `{x}` written backwards.", "Reverse the order of the characters."),
        lambda x, k: "".join(x[-1 - place] for place in range(len(x))),
        "return {x}[::-1]",
        "return ''.join(reversed({x}))",
        "turned = ''\nfor one in {x}:\n    turned = one + turned\nreturn turned",
    ),
    "palindrome": _define(
        _TEXT,
        "is_palindrome",
        ("Tell whether `{x}` reads the same backwards, capitals or not.",
         "Is this a palindrome? Capital letters do not matter."),
        lambda x, k: list(x.lower()) == list(reversed(x.lower())),
        "lowered = {x}.lower()\nreturn lowered == lowered[::-1]",
        "lowered = {x}.lower()\nfor place in range(len(lowered) // 2):\n"
        "    if lowered[place] != lowered[-1 - place]:\n        return False\nreturn True",
    ),
    "repeat": _define(
        _TEXT,
        "repeat_{k}_times",
        ("Repeat `{x}` {k} times.", "Return the text {k} times over, with nothing between."),
        lambda x, k: "".join([x for _ in range(k)]),
        "return {x} * {k}",
        "whole = ''\nfor _ in range({k}):\n    whole += {x}\nreturn whole",
        constants=(2, 3, 4),
    ),
    "num_words": _define(
        _TEXT,
        "num_words",
        ("Count the words of `{x}`.", "How many words, apart by blanks, are in the text?"),
        lambda x, k: sum(map(bool, x.split(" "))),
        "return len({x}.split())",
        "count = 0\nfor word in {x}.split():\n    count += 1\nreturn count",
    ),
    "digits": _define(
        _COUNT,
        "digit_sum",
        ("Add up the digits of `{x}`.", "Return the sum of the decimal digits."),
        lambda x, k: x // 10 + x % 10,
        "return sum(int(digit) for digit in str({x}))",
        "total = 0\nfor digit in str({x}):\n    total += int(digit)\nreturn total",
    ),
    "sum_to": _define(
        _COUNT,
        "sum_to",
        ("Add the numbers from 1 to `{x}`.", "Return 1 + 2 + ... up to the number given."),
        lambda x, k: x * (x + 1) // 2,
        "return sum(range(1, {x} + 1))",
        "total = 0\nfor term in range(1, {x} + 1):\n    total += term\nreturn total",
    ),
    "divisors": _define(
        _COUNT,
        "divisors",
        ("List the divisors of `{x}` from 1 on.", "Return each number from 1 that divides it."),
        lambda x, k: sorted({d for d in range(1, x + 1) for e in range(1, x + 1) if d * e == x}),
        "return [one for one in range(1, {x} + 1) if {x} % one == 0]",
        "found = []\nfor one in range(1, {x} + 1):\n    if {x} % one == 0:\n"
        "        found.append(one)\nreturn found",
    ),
    "power": _define(
        _COUNT,
        "power_of_{k}",
        ("Raise {k} to the power `{x}`.", "Return {k} times itself, as often as the number says."),
        lambda x, k: k**x,
        "return {k} ** {x}",
        "result = 1\nfor _ in range({x}):\n    result *= {k}\nreturn result",
        constants=(2, 3, 5),
    ),
}  # fmt: skip
