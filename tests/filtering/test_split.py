import numpy as np

from phiscope.filtering.split import fold, hold_out

GROUPS = [f"template {number % 50}" for number in range(1000)]


def test_no_group_is_on_both_sides():
    held_out = hold_out(GROUPS, 0.3, 0)
    sides = [{g for g, out in zip(GROUPS, held_out, strict=True) if out == side} for side in (0, 1)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_no_group_is_in_two_folds():
    folds = fold(GROUPS, 3, 0)
    assert set(folds) == {0, 1, 2}
    assert all(len(set(folds[number::50])) == 1 for number in range(50))


def test_about_the_share_is_held_out():
    ids = [str(number) for number in range(10_000)]
    assert abs(hold_out(ids, 0.2, 0).mean() - 0.2) < 0.02


def test_a_group_keeps_its_side_whatever_others_there_are():
    assert np.array_equal(hold_out(GROUPS, 0.3, 0)[:20], hold_out(GROUPS[:20], 0.3, 0))


def test_another_seed_splits_otherwise():
    assert not np.array_equal(hold_out(GROUPS, 0.3, 0), hold_out(GROUPS, 0.3, 1))
