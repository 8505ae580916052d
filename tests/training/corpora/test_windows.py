import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_corpora import make_shards

from phiscope.model import PhiForCausalLM
from phiscope.packing import pack_lengths
from phiscope.training.corpora.windows import IGNORED, PACKINGS, Windows
from phiscope.training.options import small_config

LENGTHS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4)
WINDOWS = st.builds(
    Windows,
    shards=st.builds(lambda lengths: make_shards(*lengths), LENGTHS),
    length=st.integers(1, 12),
    seed=st.integers(0, 99),
    packing=st.sampled_from(PACKINGS),
)


def list_targets(windows, epoch):
    first = epoch * windows.num_windows
    numbers = range(first, first + windows.num_windows)
    targets = torch.cat([windows.window(number).targets for number in numbers])
    return sorted(targets[targets != IGNORED].tolist())


def first_places(shards):
    """The places of documents' first tokens."""
    ends = shards.ends(0, shards.num_tokens)
    return {0, *ends[:-1].tolist()}


@given(WINDOWS, st.integers(0, 5))
def test_each_token_is_a_target_once_per_epoch(windows, epoch):
    places = set(range(windows.shards.num_tokens))
    if windows.packing == "documents":
        places -= first_places(windows.shards)
    assert list_targets(windows, epoch) == sorted(places)


@given(WINDOWS, st.integers(0, 50))
def test_a_target_is_the_token_behind_its_input(windows, number):
    batch = windows.window(number)
    counted = batch.targets != IGNORED
    behind = (batch.input_ids + 1) % windows.shards.num_tokens
    assert torch.equal(batch.targets[counted], behind[counted])
    assert batch.num_targets == int(counted.sum())
    assert len(batch.input_ids) == len(batch.targets) == sum(batch.lengths) == windows.length


@given(LENGTHS, st.integers(1, 12), st.integers(0, 50))
def test_sequences_of_documents_never_cross_a_border(lengths, length, number):
    shards = make_shards(*lengths)
    windows = Windows(shards=shards, length=length, packing="documents")
    batch = windows.window(number)
    ends = shards.ends(0, shards.num_tokens)
    for ids in batch.input_ids.split(batch.lengths):
        assert ids.tolist() == list(range(int(ids[0]), int(ids[-1]) + 1))
        assert len(set(np.searchsorted(ends, ids.numpy(), side="right").tolist())) == 1
    lasts = np.isin(batch.input_ids.numpy() + 1, ends)
    assert (batch.targets.numpy()[lasts] == IGNORED).all()


@given(WINDOWS, st.integers(0, 9), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_ranks_share_a_step_in_order(windows, step, num_ranks):
    whole = windows.batch(step, 12)
    parts = [windows.batch(step, 12, rank, num_ranks) for rank in range(num_ranks)]
    assert torch.equal(torch.cat([part.input_ids for part in parts]), whole.input_ids)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert [length for part in parts for length in part.lengths] == whole.lengths


def test_positions_begin_anew_with_each_document():
    windows = Windows(shards=make_shards([3, 3], [6]), length=12, packing="documents")
    batch = windows.batch(0, 2)
    packed = pack_lengths(batch.lengths)
    begins = [0, *np.cumsum(batch.lengths)[:-1].tolist()]
    assert packed.num_tokens == 24
    assert packed.positions[begins].tolist() == [0] * len(begins)


def test_attention_stays_inside_documents():
    config = small_config(vocab_size=64, hidden_size=16, layers=2, heads=2, context=32)
    model = PhiForCausalLM(config)
    model.init_weights(torch.Generator().manual_seed(0))
    shards = make_shards([7, 20, 5], [9, 23])
    batch = Windows(shards=shards, length=32, packing="documents").batch(0, 2)
    with torch.no_grad():
        together = model(batch.input_ids, pack_lengths(batch.lengths))
        pieces = batch.input_ids.split(batch.lengths)
        alone = torch.cat([model(piece, pack_lengths([len(piece)])) for piece in pieces])
    assert len(pieces) > 2
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_batch_depends_on_its_step_alone(packing):
    make = {"shards": make_shards([5, 9], [30]), "length": 8, "seed": 3, "packing": packing}
    used, fresh = Windows(**make), Windows(**make)
    for step in range(12):
        used.batch(step, 4)
    assert torch.equal(used.batch(7, 4).input_ids, fresh.batch(7, 4).input_ids)
    assert used.digest == fresh.digest


def test_epochs_and_seeds_differ():
    shards = make_shards([40, 40, 40])
    windows, other = (Windows(shards=shards, length=8, seed=seed) for seed in (3, 4))
    first = windows.batch(0, 15).input_ids
    assert not torch.equal(first, windows.batch(1, 15).input_ids)
    assert not torch.equal(first, other.batch(0, 15).input_ids)
    assert windows.digest != other.digest


def test_windows_of_files_are_those_of_the_documents(shards, tokenizer):
    windows = Windows(shards=shards, length=64, packing="documents")
    documents = [shards.document(number).tolist() for number in range(shards.num_documents)]
    batch = windows.batch(0, windows.num_windows)
    for ids in batch.input_ids.split(batch.lengths):
        piece = " ".join(map(str, ids.tolist()))
        assert any(piece in " ".join(map(str, document)) for document in documents)
        assert tokenizer.eos_token_id not in ids[:-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((0, 4, 2, 2), "no rank 2 of 2"),
        ((0, 4, 0, 3), "3 ranks cannot share a batch of 4"),
        ((0, 0), "batch of 0 windows"),
        ((-1, 4), "got -1"),
    ],
)
def test_batches_that_cannot_be_are_refused(words, message):
    windows = Windows(shards=make_shards([40]), length=8)
    with pytest.raises(ValueError, match=message):
        windows.batch(*words)


@pytest.mark.parametrize(
    ("options", "message"), [({"length": 0}, "got 0"), ({"packing": "loose"}, "'loose'")]
)
def test_windows_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Windows(**{"shards": make_shards([40]), "length": 8} | options)
