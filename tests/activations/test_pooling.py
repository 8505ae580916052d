import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phiscope.activations.pooling import REDUCERS, normalize, pool, select_reducers
from phiscope.kernels import build, calls

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@pytest.mark.parametrize("reducer", REDUCERS)
@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 1000))
def test_a_sequence_pools_to_the_same_bits_whatever_its_neighbours(reducer, lengths, seed):
    x = torch.randn(sum(lengths), 5, generator=torch.Generator().manual_seed(seed)).half()
    together = pool(x, lengths, reducer)
    for sequence, rows in enumerate(x.split(lengths)):
        assert torch.equal(together[sequence], pool(rows, [len(rows)], reducer)[0])


@pytest.mark.parametrize("reducer", REDUCERS)
def test_the_number_of_threads_does_not_matter(reducer):
    x = torch.randn(3000, 64, generator=torch.Generator().manual_seed(1))
    lengths, before = [2000, 1000], torch.get_num_threads()
    one_thread = pool(x, lengths, reducer)
    torch.set_num_threads(3)
    try:
        assert torch.equal(pool(x, lengths, reducer), one_thread)
    finally:
        torch.set_num_threads(before)


def test_each_reducer_by_hand():
    x = torch.tensor([[1.0, -8.0], [4.0, -2.0], [7.0, 6.0], [3.0, 3.0]])
    expected = {
        "mean": [4.0, -4 / 3],
        "last": [7.0, 6.0],
        "weighted_mean": [(1 + 8 + 21) / 6, (-8 - 4 + 18) / 6],
        "max": [7.0, 6.0],
        "first": [1.0, -8.0],
    }
    for reducer in REDUCERS:
        rows = pool(x, [3, 1], reducer)
        assert torch.allclose(rows, torch.tensor([expected[reducer], [3.0, 3.0]]))


def test_half_precision_is_summed_in_fp32():
    x = torch.full((1000, 2), 1000.0, dtype=torch.float16)  # the sum is beyond fp16
    assert torch.equal(pool(x, [1000], "mean"), torch.full((1, 2), 1000.0))


def test_a_nan_stays_in_its_own_sequence():
    x = torch.ones(5, 2)
    x[1] = float("nan")
    for reducer in ("mean", "weighted_mean", "max"):
        rows = pool(x, [3, 2], reducer)
        assert rows[0].isnan().all()
        assert torch.equal(rows[1], torch.ones(2))


def test_heads_are_pooled_apart():
    x = torch.randn(6, 3, 4)
    assert torch.allclose(pool(x, [2, 4], "mean")[1], x[2:].mean(0))


@pytest.mark.parametrize("lengths", [[3, 3], [5, 0], [], [4]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match="5 rows cannot be sequences of lengths"):
        pool(torch.ones(5, 2), lengths, "mean")


def test_an_unknown_reducer_is_refused():
    with pytest.raises(ValueError, match="no pooling 'median'; choose from mean, last"):
        pool(torch.ones(2, 2), [2], "median")
    assert select_reducers(["max", "mean", "max"]) == ("max", "mean")


def test_normalized_rows_have_length_one_and_zeros_stay():
    rows = normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]]))
    assert torch.allclose(rows.norm(dim=-1), torch.tensor([1.0, 0.0, 1.0]))
    assert math.isclose(float(rows[0, 0]), 0.6, rel_tol=1e-6)


@pytest.mark.skipif(build.find_obstacle() is not None, reason="no C++ compiler")
@pytest.mark.parametrize("width", [1, 7, 64, 2570])
def test_sums_by_the_kernel_are_those_of_torch_to_the_bit(width):
    torch.manual_seed(0)
    lengths = torch.tensor([1, 300, 7, 64])
    x = torch.randn(372, width)
    x[5, 0], x[310, 0] = torch.inf, torch.nan
    wanted = torch.segment_reduce(x, "sum", lengths=lengths, unsafe=True)
    got = calls.sum_sequences(x, lengths)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
