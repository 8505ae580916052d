"""Texts of known quality, the stores of their states, and a filter fitted on them."""

import json
import random

import pytest

import phiscope
from phiscope.filtering import FilterOptions, LabelFields, fit_filter

TOPICS = ("list", "tuple", "string", "module", "function", "class", "file", "number", "loop")
LESSONS = (
    "A {a} is an object that holds a {b}. It returns the {b} when it is called.",
    "To make a new {a}, call the {b} with one argument and keep the result.",
    "If the {a} is empty, the {b} raises an error. Otherwise it returns None.",
    "The {a} and the {b} are not the same: the first one cannot be changed.",
    "This example shows how a {a} can be used to find a {b} in a file.",
    "Return true if the {a} is equal to the {b}, and false if it is not.",
    "Each {a} has a name. The name is given when the {b} is created.",
    "When the {a} is closed, all of its items are written to the {b}.",
    "The second argument is the {a}. By default it is the same as the {b}.",
    "Note that the {a} is evaluated once, before the {b} is called.",
)
MENUS = (
    "Home | {a} | {b} | Login | Cart (0) | FAQ | >> | <<",
    "CLICK {a} NOW!!! {b} FREE $$$ 99,99 -50% buy BUY",
    "(c) 2019 {a}.com -- {b} :: rss :: xml :: top :: 1 2 3 4",
    "{a}{a} {b} xx__xx 0x00 ~~ ## {b} @@ {a} %% &&",
)
NUM_SHUFFLED = 6


def make_rows():
    """Rows of two classes, each with ten templates, of which six are lessons shuffled."""
    rows = []
    for number, template in enumerate(LESSONS):
        rows += _fill("textbook", f"lesson {number}", template)
    for number, template in enumerate(MENUS):
        rows += _fill("junk", f"menu {number}", template)
    for number, template in enumerate(LESSONS[:NUM_SHUFFLED]):
        rows += _fill("junk", f"shuffled {number}", template, shuffles=True)
    return [{"id": f"t{number}", **row} for number, row in enumerate(rows)]


def _fill(label, template_name, template, *, shuffles=False):
    words = random.Random(template_name)
    for _ in range(12):
        a, b = words.sample(TOPICS, 2)
        text = template.format(a=a, b=b)
        if shuffles:
            pieces = text.split()
            words.shuffle(pieces)
            text = " ".join(pieces)
        yield {"label": label, "template": template_name, "text": text}


@pytest.fixture(scope="session")
def phi():
    return phiscope.load("nano", mode="fp32-cpu")


@pytest.fixture(scope="session")
def rows():
    return make_rows()


@pytest.fixture(scope="session")
def texts(rows):
    return [row["text"] for row in rows]


@pytest.fixture(scope="session")
def data(rows, tmp_path_factory):
    """The rows as a file."""
    path = tmp_path_factory.mktemp("data") / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def write_store(phi, rows, tmp_path_factory):
    """The folder of a store of the rows' states."""

    def write(rows=rows, phi=phi, **settings):
        folder = tmp_path_factory.mktemp("stores") / "states"
        settings = {"points": "resid_post.[1,2]", "pool": ("mean", "last"), **settings}
        phi.extract(rows, folder, **settings)
        return folder

    return write


@pytest.fixture(scope="session")
def folder(write_store):
    return write_store(dtype="float32")


@pytest.fixture(scope="session")
def half_folder(write_store):
    """The same in float16."""
    return write_store()


@pytest.fixture(scope="session")
def fit(folder, data):
    """Fit on that store, holding out templates."""

    def fit(store=folder, data=data, fields=None, **settings):
        settings = {"positive": "textbook", "held_out": 0.4, "regularization": 100.0, **settings}
        fields = fields or LabelFields(group="template")
        return fit_filter(store, data, FilterOptions(**settings), fields=fields)

    return fit


@pytest.fixture(scope="session")
def fitted(fit):
    """Of each kind of head, fitted once."""
    made = {}

    def get(head="ridge"):
        if head not in made:
            made[head] = fit(head=head)
        if head == "forest":
            del made[head].head.forest.estimators_[10:]  # which are as many as tests need
        return made[head]

    return get
