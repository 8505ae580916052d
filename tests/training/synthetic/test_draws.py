from collections import Counter

import pytest

from phiscope.training.synthetic.draws import Draw


def test_a_key_gives_the_same_draws_on_every_machine():
    draw = Draw("0")
    assert [draw.below(1000) for _ in range(5)] == [84, 710, 667, 848, 114]


def test_some_of_the_items_are_no_item_twice():
    draw = Draw("some")
    for count in range(6):
        some = draw.some("abcde", count)
        assert len(set(some)) == len(some) == count


def test_weights_are_followed_and_zeros_never_drawn():
    draw = Draw("weights")
    counts = Counter(draw.pick_weighted({"a": 3, "b": 0, "c": 1, "d": 0}) for _ in range(2000))
    assert set(counts) == {"a", "c"}
    assert counts["a"] == pytest.approx(1500, abs=90)


def test_between_reaches_both_ends():
    draw = Draw("between")
    assert {draw.between(3, 5) for _ in range(100)} == {3, 4, 5}
