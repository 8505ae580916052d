from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiscope.training.corpora.permutation import draw_integer, make_keys, permute


@given(st.integers(1, 300), st.integers(0, 2**40))
def test_it_is_a_permutation(size, seed):
    keys = make_keys(seed)
    assert sorted(permute(index, size, keys) for index in range(size)) == list(range(size))


def test_large_orders_take_no_memory_and_do_not_repeat():
    keys, size = make_keys("large"), 10**15 + 7
    found = {permute(index, size, keys) for index in range(2000)}
    assert len(found) == 2000
    assert max(found) < size
    assert 0.45 < sum(found) / len(found) / size < 0.55


def test_names_make_the_order():
    orders = [[permute(i, 100, make_keys(*names)) for i in range(100)] for names in NAMES]
    assert len({tuple(order) for order in orders}) == len(NAMES)
    assert orders[0] == [permute(i, 100, make_keys(*NAMES[0])) for i in range(100)]


NAMES = [("a", 0), ("a", 1), ("b", 0), ("a", 0, 0)]


def test_neighbours_do_not_stay_neighbours():
    order = [permute(index, 1000, make_keys("near")) for index in range(1000)]
    steps = [abs(after - before) for before, after in pairwise(order)]
    assert sum(step == 1 for step in steps) < 10
    assert 250 < sum(steps) / len(steps) < 420


def test_the_order_is_the_same_on_every_machine():
    assert [permute(index, 10, make_keys("fixed", 7)) for index in range(10)] == FIXED
    assert draw_integer(1000, "fixed", 7) == FIXED_DRAW


FIXED = [6, 3, 7, 9, 1, 0, 8, 2, 4, 5]
FIXED_DRAW = 913


def test_an_index_that_is_not_there_is_refused():
    with pytest.raises(IndexError, match="5 is not below 5"):
        permute(5, 5, make_keys())
