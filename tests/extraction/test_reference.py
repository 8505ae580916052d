"""What a store should hold is found in another way than the way it was made."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_extraction import POOLS, make_phi

from phiscope.activations.points import Point
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.inputs import Row
from phiscope.extraction.options import make_options
from phiscope.extraction.reference import Reference, Rows, fold

POINT = Point("resid_post", 1)


@pytest.fixture(scope="module")
def phi():
    return make_phi()


def make_extractor(phi, **settings):
    options = make_options(**{"points": "resid_post.[:]", "overflow": "window"} | settings)
    return Extractor(phi.model, phi.tokenizer, options)


def read(extractor, length):
    ids = np.random.default_rng(length).integers(0, 300, length)
    ids[::9] = 7
    (text,) = extractor.read([Row(index=0, id="0", ids=tuple(ids.tolist()))], 0).texts
    return text


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from(sorted(POOLS)))
def test_rows_folded_piece_by_piece_are_pooled_as_a_whole(lengths, reducer):
    values = np.random.default_rng(sum(lengths)).standard_normal((sum(lengths), 3))
    row, order = None, 0
    for length in lengths:
        rows = Rows(POINT, order, values[order : order + length])
        row, order = fold(reducer, row, rows, len(values)), order + length
    np.testing.assert_allclose(row[0], POOLS[reducer](values), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", ["all", "first:3", "last:70", "last:1", "token:7"])
def test_each_chosen_token_comes_once_and_in_order(phi, tokens):
    extractor = make_extractor(phi, tokens=tokens, window=30, stride=12)
    text = read(extractor, 100)
    rows = list(Reference(extractor).run(text, [POINT]))
    assert sum(len(some.values) for some in rows) == len(text.positions)
    ends = np.cumsum([0, *(len(some.values) for some in rows)])
    assert [some.order for some in rows] == ends[:-1].tolist()


def test_a_text_within_one_window_is_captured_whole(phi):
    extractor = make_extractor(phi)
    text = read(extractor, 40)
    (rows,) = Reference(extractor).run(text, [POINT])
    captured = phi.capture([text.ids], [POINT])["resid_post.1"][0]
    np.testing.assert_array_equal(rows.values, captured.numpy())


def test_few_points_at_a_time_give_what_all_at_once_do(phi):
    extractor = make_extractor(phi, points="resid_post.[:], attn_entropy.[:], z.1")
    points = [reading.point for reading in extractor.readings]
    text = read(extractor, 40)
    whole = list(Reference(extractor).run(text, points))
    single = list(Reference(extractor, max_numbers=1).run(text, points))
    assert [rows.point for rows in whole] == [rows.point for rows in single] == points
    for one, other in zip(whole, single, strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_read_in_fp32(dtype):
    phi = make_phi()
    phi.model.to(dtype)
    extractor = make_extractor(phi)
    text = read(extractor, 20)
    (rows,) = Reference(extractor).run(text, [POINT])
    exact = make_phi()
    exact.model.to(dtype).double()
    captured = exact.capture([text.ids], [POINT])["resid_post.1"][0].numpy()
    np.testing.assert_allclose(rows.values, captured, rtol=1e-4, atol=1e-4)
    assert not np.array_equal(rows.values, rows.values.astype(np.float16))
