import numpy as np
import pytest
from small_stores import make_text_store, make_token_store

from phiscope.store import Column
from phiscope.views.projection import find_components, project_column
from phiscope.views.sample import sample_rows

COLUMN = Column(name="resid_post.1.mean", dtype="float32", shape=(5,))


def make_rows(n, width, seed=0):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, width)) * np.arange(width, 0, -1) + 50.0


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (3, 2)])
def test_components_are_those_of_the_singular_value_decomposition(shape):
    x = make_rows(*shape)
    u, lengths, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    coordinates, shares = find_components(x)
    assert np.allclose(np.abs(coordinates), np.abs(u[:, :2] * lengths[:2]), atol=1e-9)
    assert shares == pytest.approx((lengths**2 / (lengths**2).sum())[:2])
    for place in range(2):
        loadings = (x - x.mean(axis=0)).T @ coordinates[:, place]
        assert loadings[np.abs(loadings).argmax()] > 0


def test_rows_that_are_all_the_same_lie_in_one_point():
    coordinates, shares = find_components(np.ones((5, 4)))
    assert not coordinates.any()
    assert shares == (0.0, 0.0)


def test_a_sample_has_one_row_of_each_stretch():
    assert sample_rows(7, 10).tolist() == list(range(7))
    rows = sample_rows(1_000_003, 100)
    assert (rows // 10_000).tolist() == list(range(100))
    assert len(np.unique(rows % 64)) > 40  # no one position of texts of 64 tokens
    assert sample_rows(1_000_003, 100).tolist() == rows.tolist()
    with pytest.raises(ValueError, match="at least one row, got 0"):
        sample_rows(7, 0)


def test_classes_follow_their_texts(tmp_path):
    store = make_text_store(tmp_path / "store", [COLUMN], list("abcdef"))
    projection = project_column(store, COLUMN.name, labels={"a": "x", "e": "y"})
    assert projection.labels == ("x", None, None, None, "y", None)
    assert projection.sampling == "6 texts"
    assert projection.coordinates.shape == (6, 2)


def test_the_first_tokens_of_texts_are_left_out(tmp_path):
    column = Column(name="resid_post.1", dtype="bfloat16", shape=(5,))
    texts = [("a", [1, 2, 3]), ("b", [4]), ("c", [5, 6])]
    store = make_token_store(tmp_path / "store", [column], texts)
    projection = project_column(store, column.name, labels={"a": "x"})
    assert projection.labels == ("x", "x", None)
    assert projection.sampling == "3 tokens, none the first of its text"


def test_two_rows_have_no_projection(tmp_path):
    store = make_text_store(tmp_path / "store", [COLUMN], ["a", "b"])
    assert project_column(store, COLUMN.name) is None
