"""Costs are counted as torch counts them, and grow with what they are of."""

import numpy as np
import pytest
from plain_extraction import make_phi
from torch.utils.flop_counter import FlopCounterMode

from phiscope.extraction.costs import Costs
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.inputs import Row
from phiscope.extraction.options import make_options
from phiscope.extraction.pieces import Piece, Read


class Nowhere:
    def put(self, column, first_row, values):
        pass


@pytest.fixture(scope="module")
def phi():
    phi = make_phi()
    phi.model.set_attention("eager")
    return phi


def make_extractor(phi, **settings):
    known = {"points": "final_norm", "pool": None, "share_prefixes": False}
    return Extractor(phi.model, phi.tokenizer, make_options(**known | settings))


def read(extractor, *lengths):
    rows = [Row(index=n, id=str(n), ids=(7,) * length) for n, length in enumerate(lengths)]
    return extractor.read(rows, 0)


def make_piece(length, start=0):
    return Piece((7,) * length, (Read((0,), np.arange(length), 0),), start)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"points": "resid_post.1"},
        {"points": "logits", "top_k": 3},
        {"points": "logits", "top_k": 3, "pool": ("last", "first")},
    ],
    ids=["whole", "two blocks", "logits", "logits of some"],
)
def test_operations_are_those_that_torch_counts(phi, settings):
    extractor = make_extractor(phi, **settings)
    shard = read(extractor, *[1] * 5)  # of one token, which sees itself: nothing is masked
    with FlopCounterMode(display=False) as counter:
        extractor.run(shard, Nowhere())
    (batch,) = extractor.plan(shard)
    assert Costs(extractor).count_operations(batch) == counter.get_total_flops()


def test_tokens_see_those_before_them_and_those_of_a_prefix(phi):
    costs = Costs(make_extractor(phi))
    one, three = costs.count_operations([make_piece(1)]), costs.count_operations([make_piece(3)])
    per_pair = 4 * 3 * 32  # twice two products, in three blocks, of four heads with eight numbers
    assert three == 3 * one + 3 * per_pair
    assert costs.count_operations([make_piece(1, start=10)]) == one + 10 * per_pair


def test_memory_grows_with_tokens_maps_logits_and_prefixes(phi):
    plain = Costs(make_extractor(phi))
    least = plain.estimate_memory([make_piece(20)], 0)
    assert plain.estimate_memory([make_piece(30)], 0) > least
    assert plain.estimate_memory([make_piece(20)], 50) > least
    assert plain.estimate_memory([make_piece(20, start=50)], 0) > least
    for settings in ({"points": "attn_entropy.2, final_norm"}, {"points": "logits", "top_k": 1}):
        assert Costs(make_extractor(phi, **settings)).estimate_memory([make_piece(20)], 0) > least


def test_a_shards_memory_is_of_its_letters_tokens_and_rows(phi):
    extractor = make_extractor(phi, dtype="float32")
    few, many = (Costs(extractor).estimate_shard_memory(read(extractor, n, n)) for n in (10, 20))
    assert many == 2 * few
    pooled = make_extractor(phi, dtype="float32", pool="mean")
    assert Costs(pooled).estimate_shard_memory(read(pooled, 10, 10)) < few
