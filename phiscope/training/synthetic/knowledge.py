"""Things that can be checked: relations as tables, sums and orderings as arithmetic.

A relation's wrong value is the right value of another row, so that how often a value is named says
nothing of the truth.
"""

from __future__ import annotations

from collections.abc import Callable

from phiscope.training.synthetic.draws import Draw

Claim = dict[str, str]
"""The slots of a claim: what it speaks of, and `value`, which is right or wrong."""
Maker = Callable[[Draw, bool], Claim]
"""Makes a claim that is true or false, as asked."""

_NUMBER_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_BY_SIZE = (
    *("ant", "bee", "mouse", "squirrel", "hen", "cat", "goat", "pony", "cow", "elephant"),
    *("whale",),
)
_BY_SPEED = ("snail", "walker", "bicycle", "car", "train", "aeroplane", "rocket")

RELATIONS: dict[str, dict[str, str]] = {
    "colour": {
        "a ripe banana": "yellow", "fresh grass": "green", "clean snow": "white",
        "coal": "black", "blood": "red", "a lemon": "yellow", "a raven": "black",
        "milk": "white", "a ripe strawberry": "red", "spinach": "green", "salt": "white",
        "a clear sky at noon": "blue", "a flamingo": "pink", "a carrot": "orange",
    },
    "part": {
        "saddle": "bicycle", "chimney": "house", "branch": "tree", "blade": "knife",
        "elbow": "grown-up body", "page": "book", "beak": "bird", "mast": "sailing boat",
        "keyboard": "piano", "lens": "camera", "fin": "fish", "sleeve": "shirt",
    },
    "group": {
        "salmon": "fish", "trout": "fish", "oak": "tree", "birch": "tree", "eagle": "bird",
        "sparrow": "bird", "hammer": "tool", "saw": "tool", "violin": "musical instrument",
        "flute": "musical instrument", "carrot": "vegetable", "onion": "vegetable",
        "bee": "small animal with six legs", "ant": "small animal with six legs",
    },
    "opposite": {
        "hot": "cold", "early": "late", "full": "empty", "wide": "narrow", "heavy": "light",
        "deep": "shallow", "old": "young", "wet": "dry", "rough": "smooth", "near": "far",
    },
    "capital": {
        "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo",
        "Egypt": "Cairo", "Norway": "Oslo", "Greece": "Athens", "Peru": "Lima",
        "Poland": "Warsaw", "Kenya": "Nairobi", "Cuba": "Havana", "Portugal": "Lisbon",
    },
    "young": {
        "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "horse": "foal",
        "goat": "kid", "bear": "cub", "duck": "duckling", "frog": "tadpole", "swan": "cygnet",
    },
    "count": {
        "legs of a spider": "eight", "legs of a horse": "four", "wheels of a tricycle": "three",
        "sides of a square": "four", "sides of a triangle": "three", "days of a week": "seven",
        "legs of an ant": "six", "wings of a sparrow": "two", "noses of a person": "one",
        "corners of a hexagon": "six", "sides of a pentagon": "five", "ears of a hare": "two",
    },
    "home": {
        "a bee": "a hive", "a spider": "a web", "a bird": "a nest", "a bear": "a den",
        "a horse": "a stable", "a monk": "a monastery", "a king": "a palace", "a dog": "a kennel",
    },
}  # fmt: skip


def relate(name: str) -> Maker:
    """Claims `thing` - `value` of one of the relations."""
    rows = tuple(RELATIONS[name].items())
    values = tuple(value for _, value in rows)

    def make(draw: Draw, is_true: bool) -> Claim:
        thing, right = draw.pick(rows)
        return {"thing": thing, "value": right if is_true else _other(draw, values, right)}

    return make


def add(draw: Draw, is_true: bool) -> Claim:
    a, b = draw.between(2, 60), draw.between(2, 40)
    return {"a": str(a), "b": str(b), "value": _near(draw, a + b, is_true)}


def subtract(draw: Draw, is_true: bool) -> Claim:
    rest, b = draw.between(12, 60), draw.between(2, 40)
    return {"a": str(rest + b), "b": str(b), "value": _near(draw, rest, is_true)}


def multiply(draw: Draw, is_true: bool) -> Claim:
    a, b = draw.between(2, 12), draw.between(3, 12)
    return {"a": str(a), "b": str(b), "value": _near(draw, a * b, is_true)}


def double(draw: Draw, is_true: bool) -> Claim:
    a = draw.between(7, 99)
    return {"a": str(a), "value": _near(draw, 2 * a, is_true)}


def parity(draw: Draw, is_true: bool) -> Claim:
    a = draw.between(1, 400)
    return {"a": str(a), "value": "even" if (a % 2 == 0) == is_true else "odd"}


def compare(draw: Draw, is_true: bool) -> Claim:
    """`large` above `small`, or the other way round."""
    a = draw.between(1, 300)
    low, high = str(a), str(a + draw.between(1, 90))
    return {"large": high, "small": low} if is_true else {"large": low, "small": high}


def compare_sizes(draw: Draw, is_true: bool) -> Claim:
    return _ranked(draw, _BY_SIZE, is_true)


def compare_speeds(draw: Draw, is_true: bool) -> Claim:
    return _ranked(draw, _BY_SPEED, is_true)


def follow_day(draw: Draw, is_true: bool) -> Claim:
    return _following(draw, _DAYS, is_true)


def follow_month(draw: Draw, is_true: bool) -> Claim:
    return _following(draw, _MONTHS, is_true)


def follow_number(draw: Draw, is_true: bool) -> Claim:
    return _following(draw, _NUMBER_NAMES, is_true)


def _other(draw: Draw, values: tuple[str, ...], right: str) -> str:
    return draw.pick(tuple(value for value in values if value != right))


def _near(draw: Draw, right: int, is_true: bool) -> str:
    """The number, or one a little beside it."""
    offset = draw.between(1, 9)
    is_above = draw.below(2)
    if is_true:
        return str(right)
    return str(right + offset if is_above or right <= offset else right - offset)


def _ranked(draw: Draw, ranks: tuple[str, ...], is_true: bool) -> Claim:
    low = draw.below(len(ranks) - 1)
    high = draw.between(low + 1, len(ranks) - 1)
    ends = ranks[high], ranks[low]
    large, small = ends if is_true else ends[::-1]
    return {"large": large, "small": small}


def _following(draw: Draw, ring: tuple[str, ...], is_true: bool) -> Claim:
    """Neighbours in a ring; the last of ten numbers is followed by none."""
    first = int(ring is _NUMBER_NAMES)
    place = draw.below(len(ring) - first)
    right = ring[(place + 1) % len(ring)]
    wrong = _other(draw, tuple(one for one in ring[first:] if one != ring[place]), right)
    return {"thing": ring[place], "value": right if is_true else wrong}
