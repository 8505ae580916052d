"""Kind `code`: a Python function with a docstring and examples, in the manner of CodeExercises.

Each distinct function is run once, against all examples of its template, before a sample shows it.
A template is a function to be written; held-out samples ask for other functions.
"""

from __future__ import annotations

import textwrap
from functools import cache, partial

from phiscope.training.synthetic.draws import Draw
from phiscope.training.synthetic.functions import FUNCTIONS, Function
from phiscope.training.synthetic.samples import Kind, Labels, Template
from phiscope.training.synthetic.verification import Example, verify

_DOCTEST = '''\
def {name}({parameter}):
    """
    {task}

{examples}
    """
{body}
'''
_COMMENT = '''\
# Exercise: {task}
def {name}({parameter}):
    """{task}"""
{body}


{examples}
'''
_ASKED = '''\
"""
Exercise {number}

Write a function `{name}`. {task}
"""
def {name}({parameter}):
    """{task}"""
{body}


{examples}
'''


def _draw_labels(draw: Draw, strength: float) -> dict[str, str]:
    return {"verified": "true"}


def _write(key: str, draw: Draw, labels: Labels) -> str:
    function = FUNCTIONS[key]
    constant = draw.pick(function.constants)
    fill = partial(_fill, constant=constant, parameter=draw.pick(function.domain.parameters))
    name = fill(draw.pick(function.names))
    body = textwrap.indent(fill(draw.pick(function.bodies)), "    ")
    header = f"def {name}({fill('{x}')}):\n"
    shown = draw.some(_verified_examples(header + body, name, key, constant), draw.between(1, 3))
    layout, show = draw.pick(_LAYOUTS)
    return layout.format(
        name=name,
        parameter=fill("{x}"),
        task=fill(draw.pick(function.tasks)),
        body=body,
        examples=show(name, shown),
        number=draw.between(1, 99),
    )


@cache
def _verified_examples(source: str, name: str, key: str, constant: int) -> tuple[Example, ...]:
    examples = make_examples(FUNCTIONS[key], constant)
    verify(source, name, examples)
    return examples


def make_examples(function: Function, constant: int) -> tuple[Example, ...]:
    """The function's arguments, each with the result that its reference gives."""
    return tuple(((one,), function.reference(one, constant)) for one in function.domain.arguments)


def _fill(pattern: str, *, constant: int, parameter: str) -> str:
    return pattern.replace("{x}", parameter).replace("{k}", str(constant))


def _show_doctest(name: str, examples: list[Example]) -> str:
    lines = (f">>> {name}({arguments[0]!r})\n{result!r}" for arguments, result in examples)
    return textwrap.indent("\n".join(lines), "    ")


def _show_asserts(name: str, examples: list[Example]) -> str:
    return "\n".join(f"assert {name}({args[0]!r}) == {result!r}" for args, result in examples)


_LAYOUTS = ((_DOCTEST, _show_doctest), (_COMMENT, _show_asserts), (_ASKED, _show_asserts))

EXERCISES = Kind(
    _draw_labels,
    tuple(Template(f"code/{key}", partial(_write, key)) for key in FUNCTIONS),
)
