import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phiscope.config import PhiConfig
from phiscope.packing import pack, pack_lengths, plan_batches, read_tokens


def test_tokens_lie_end_to_end_with_positions_of_their_own_sequence():
    ids, packed = pack([[5, 6], [7], [8, 9, 10]])
    assert ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert packed.positions.tolist() == [0, 1, 0, 0, 1, 2]
    assert packed.offsets == (0, 2, 3, 6)
    assert packed.cu_seqlens.tolist() == [0, 2, 3, 6]
    assert packed.last_rows.tolist() == [1, 2, 5]
    assert packed.token_sequences.tolist() == [0, 0, 1, 2, 2, 2]


def test_cached_sequences_go_on_at_their_start():
    packed = pack_lengths([2, 1], starts=[3, 0], slots=[4, 1])
    assert packed.positions.tolist() == [3, 4, 0]
    assert packed.key_lengths == (5, 1)
    assert packed.token_slots.tolist() == [4, 4, 1]
    assert packed.cu_seqlens_k.tolist() == [0, 5, 6]
    assert packed.cu_seqlens_k.dtype == torch.int32


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([], {}, "at least one sequence"),
        ([2, 0], {}, "sequence 1 of the batch has no tokens"),
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


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.integers(50, 400))
def test_no_batch_is_much_smaller_than_another(lengths, budget):
    sizes = [sum(lengths[row] for row in batch) for batch in plan_batches(lengths, budget)]
    assert len(sizes) <= 2 * sum(lengths) / budget + 1
    assert max(sizes) - sum(sizes) / len(sizes) <= max(lengths) + budget / 32 + 1


def test_a_budget_below_one_token_is_refused():
    with pytest.raises(ValueError, match="token_budget"):
        plan_batches([1], 0)


def test_a_batch_laid_out_under_inference_mode_serves_training():
    with torch.inference_mode():
        ids, packed = pack([[5, 6], [7]])
        packed.token_sequences, packed.last_rows, packed.cu_seqlens  # noqa: B018
    weight = torch.ones(8, 3, requires_grad=True)
    rows = torch.nn.functional.embedding(ids, weight)[packed.last_rows]
    (rows * packed.token_sequences[packed.last_rows, None]).sum().backward()
    assert weight.grad.sum(dim=1).tolist() == [0, 0, 0, 0, 0, 0, 0, 3]


def test_two_batches_can_be_compared():
    packed = pack_lengths([2, 3])
    assert packed == packed
    assert packed != pack_lengths([2, 3])


CONFIG = PhiConfig(
    **{"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1},
    **{"num_attention_heads": 1, "num_key_value_heads": 1, "rotary_dim": 2},
)


@pytest.mark.parametrize(
    "prompt",
    [[1, 7], (1, 7), np.array([1, 7]), torch.tensor([1, 7]), torch.tensor([1, 7]).to(torch.uint8)],
    ids=repr,
)
def test_token_ids_come_as_plain_ints_from_whatever_holds_them(prompt):
    ids = read_tokens(prompt, CONFIG)
    assert ids == [1, 7]
    assert {type(token_id) for token_id in ids} == {int}


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([1, 8], ValueError, "token id 8 at place 1"),
        ([-1], ValueError, "token id -1 at place 0"),
        ([], ValueError, "no tokens"),
        ([1.5], TypeError, r"integers, got 1\.5"),
        ([[1, 2]], TypeError, r"integers, got \[1, 2\]"),
        (np.array([[1, 2]]), TypeError, "integers, got array"),
        (torch.tensor([[1, 2]]), ValueError, r"integers \(T,\), got torch.int64 \(1, 2\)"),
        (torch.tensor([True, False]), ValueError, "got torch.bool"),
        (torch.ones(2, 3), ValueError, r"embeddings are \(tokens, 4\)"),
        (torch.ones(1, 2, 4), ValueError, r"embeddings are \(tokens, 4\)"),
    ],
    ids=repr,
)
def test_a_prompt_that_cannot_be_read_is_refused(prompt, error, message):
    with pytest.raises(error, match=message):
        read_tokens(prompt, CONFIG)
