"""Kind `occupation`: a person at work, and a pronoun, with a correlation of known strength.

Half of the occupations are group A and half group B. With strength s,

    P(she | group A) = (1 + s) / 2        P(she | group B) = (1 - s) / 2,

so s is both the difference of the two probabilities and, as the groups and then the genders are
equally frequent, the correlation (phi coefficient) of group and gender. At 0 there is none, at 1
the occupation decides. Which occupation stands in which group is nothing but a convention here.
"""

from __future__ import annotations

from functools import partial

from phiscope.training.synthetic.draws import Draw
from phiscope.training.synthetic.grammar import write
from phiscope.training.synthetic.samples import Kind, Labels, Template

GROUP_A = (
    *("nurse", "librarian", "florist", "dancer", "secretary", "hairdresser", "teacher"),
    *("cashier", "housekeeper", "dietitian"),
)
GROUP_B = (
    *("carpenter", "engineer", "pilot", "plumber", "mechanic", "electrician", "surgeon"),
    *("programmer", "firefighter", "farmer"),
)
GENDERS = ("female", "male")

_WORDS = {
    "female": {
        "she": "she",
        "her": "her",
        "them": "her",
        "herself": "herself",
        "sister": ("sister", "daughter", "aunt", "mother"),
        "woman": ("woman", "lady"),
    },
    "male": {
        "she": "he",
        "her": "his",
        "them": "him",
        "herself": "himself",
        "sister": ("brother", "son", "uncle", "father"),
        "woman": ("man", "gentleman"),
    },
}
_SHARED = {
    "town": ("town", "village", "district", "valley", "city"),
    "trait": ("careful", "patient", "quick", "tired", "clever", "quiet", "famous", "young"),
    "time": ("at six", "after breakfast", "before dawn", "at noon", "in the evening"),
    "tool": ("bag", "notebook", "gloves", "lamp", "keys", "coat"),
    "friend": ("a neighbour", "a tall man", "an old lady", "a boy", "a girl", "the doctor"),
}
_PATTERNS = {
    "begins": "The {job} begins work {time}. {she} takes {her} {tool} and locks the door.",
    "asked": "{friend} asked the {job} for advice, and {she} {gave it gladly|took a moment}.",
    "because": "The {job} went home early because {she} was {trait}.",
    "bought": "The {job} bought {herself} a new {tool} {time}.",
    "who": "Who is the {trait} {woman} over there? It is the {job} of our {town}.",
    "relative": "My {sister} is a {job} in this {town}. People say that {she} is {trait}.",
    "waited": "{friend} waited for the {job} {time} and gave {them} the {tool}.",
    "known": "Known in the whole {town} for {her} {tool}, the {job} is {trait} and works alone.",
    "taught": "The {job} taught {herself} the trade. Now {she} teaches {her} {sister}.",
    "before": "Before {she} became a {job}, {she} lived in another {town} with {friend}.",
    "interview": "We met the {job} {time}. Later {she} told us about {her} {trait} colleague.",
    "hurry": "In a hurry, the {job} forgot {her} {tool}, but {friend} ran after {them} {time}.",
    "parent": "A {job} has two children. {time} {she} reads to them, and {she} is never {trait}.",
    "letter": "A letter came for the {job}. {friend} gave it to {them}; {she} opened it {time}.",
}


def draw_gender(draw: Draw, occupation: str, strength: float) -> str:
    """A gender, by the probability that the occupation's group has."""
    sign = 1 if occupation in GROUP_A else -1
    return "female" if draw.happens((1 + sign * strength) / 2) else "male"


def _draw_labels(draw: Draw, strength: float) -> dict[str, str]:
    occupation = draw.pick(GROUP_A + GROUP_B)
    return {"occupation": occupation, "gender": draw_gender(draw, occupation, strength)}


def _write(pattern: str, draw: Draw, labels: Labels) -> str:
    slots = {name: draw.pick(words) for name, words in _SHARED.items()}
    return write(pattern, draw, {**slots, **_WORDS[labels["gender"]], "job": labels["occupation"]})


OCCUPATIONS = Kind(
    _draw_labels,
    tuple(
        Template(f"occupation/{name}", partial(_write, pattern))
        for name, pattern in _PATTERNS.items()
    ),
)
