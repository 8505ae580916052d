import pytest

from phiscope.training.synthetic.draws import Draw
from phiscope.training.synthetic.grammar import conjugate, expand, write


@pytest.mark.parametrize(
    ("verb", "present", "past"),
    [
        ("walk", "walks", "walked"),
        ("watch", "watches", "watched"),
        ("try", "tries", "tried"),
        ("play", "plays", "played"),
        ("chop", "chops", "chopped"),
        ("look at", "looks at", "looked at"),
        ("go", "goes", "went"),
        ("be", "is", "was"),
    ],
)
def test_verbs_take_their_tense(verb, present, past):
    assert (conjugate(verb, "present"), conjugate(verb, "past")) == (present, past)


def test_slots_may_hold_slots_alternatives_and_verbs():
    slots = {"who": "the {animal}", "animal": ("cat", "cat")}
    assert expand("{who} {!walk|walk} {long|long}", Draw("x"), slots, "past") == (
        "the cat walked long"
    )


def test_prose_has_capitals_and_articles():
    assert write('a {thing}. it is a owl! "go. now" he says', Draw("x"), {"thing": "apple"}) == (
        'An apple. It is an owl! "go. Now" he says'
    )


def test_an_absent_slot_is_an_error():
    with pytest.raises(KeyError, match="absent"):
        expand("{absent}", Draw("x"), {})
