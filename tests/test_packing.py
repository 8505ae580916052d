import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phiscope.packing import pack, pack_lengths, plan_batches


def test_tokens_lie_end_to_end_with_positions_of_their_own_sequence():
    ids, packed = pack([[5, 6], [7], [8, 9, 10]])
    assert ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert packed.positions.tolist() == [0, 1, 0, 0, 1, 2]
    assert packed.offsets == (0, 2, 3, 6)
    assert packed.cu_seqlens().tolist() == [0, 2, 3, 6]
    assert packed.last_rows.tolist() == [1, 2, 5]
    assert packed.token_sequences.tolist() == [0, 0, 1, 2, 2, 2]


def test_cached_sequences_go_on_at_their_start():
    packed = pack_lengths([2, 1], starts=[3, 0], slots=[4, 1])
    assert packed.positions.tolist() == [3, 4, 0]
    assert packed.key_lengths == (5, 1)
    assert packed.token_slots.tolist() == [4, 4, 1]
    assert packed.cu_seqlens_k().tolist() == [0, 5, 6]
    assert packed.cu_seqlens_k().dtype == torch.int32


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([], {}, "at least one sequence"),
        ([2, 0], {}, "sequence 1 of the batch has no tokens"),
        ([2], {"starts": [1]}, "need slots"),
        ([2], {"starts": [-1], "slots": [0]}, "starts >= 0"),
        ([2, 2], {"slots": [3, 3]}, "different slots"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(lengths, options, message):
    with pytest.raises(ValueError, match=message):
        pack_lengths(lengths, **options)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 64))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[row] for row in batch) <= budget


def test_a_budget_below_one_token_is_refused():
    with pytest.raises(ValueError, match="token_budget"):
        plan_batches([1], 0)
