import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phiscope.activations.pooling import REDUCERS, pool
from phiscope.extraction.reducing import JOINS, PARTS


def test_there_is_a_part_and_a_join_for_every_reducer():
    assert set(PARTS) == set(JOINS) == set(REDUCERS)


@pytest.mark.parametrize("reducer", REDUCERS)
@settings(max_examples=25, deadline=None)
@given(
    splits=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_parts_of_any_pieces_joined_are_the_pooled_whole(reducer, splits, dtype):
    """`splits` are the lengths of each text's pieces, all of one batch."""
    lengths = [length for pieces in splits for length in pieces]
    generator = torch.Generator().manual_seed(sum(lengths))
    x = torch.randn(sum(lengths), 5, generator=generator).to(dtype)
    orders = [sum(pieces[:n]) for pieces in splits for n in range(len(pieces))]
    parts = PARTS[reducer](x, torch.tensor(lengths), torch.tensor(orders))
    assert parts.dtype == torch.promote_types(dtype, torch.float32)
    whole = pool(x, [sum(pieces) for pieces in splits], reducer)
    each = iter(parts.split([len(pieces) for pieces in splits]))
    for pieces, expected in zip(splits, whole, strict=True):
        joined = JOINS[reducer](list(next(each)), sum(pieces))
        torch.testing.assert_close(joined, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reducer", REDUCERS)
def test_a_part_has_the_same_bits_whatever_stands_beside_it(reducer):
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    alone = PARTS[reducer](x[10:27], torch.tensor([17]), torch.tensor([4]))
    beside = PARTS[reducer](x, torch.tensor([10, 17, 13]), torch.tensor([0, 4, 2]))
    assert torch.equal(alone[0], beside[1])
