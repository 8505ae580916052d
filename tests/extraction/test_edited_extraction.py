"""Edits of an extraction: states are those of the edited forward, or the edit is refused."""

import numpy as np
import pytest
import torch
from plain_extraction import ALL_POINTS, TEXTS, Plain, assert_equal, extract, make_phi, make_rows

from phiscope.activations.edits import Add, Knockout, Scale
from phiscope.activations.points import Point
from phiscope.errors import StoreError, UnsupportedError
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.options import make_options
from phiscope.store.reader import open_store


@pytest.fixture(scope="module")
def phi():
    return make_phi()


@pytest.mark.parametrize(
    "edit",
    [
        Add(Point("resid_post", 0), torch.arange(32.0), 0.3),
        Scale(Point("z", 1), 0.0, heads=(1,), positions=(0, 4)),
        Knockout(Point("attn_scores", 1), keys=(1, 2), heads=(0,)),
        Scale(Point("attn_probs", 2), 0.5),
        Scale(Point("embeddings"), 3.0),
        Scale(Point("final_norm"), -1.0),
    ],
    ids=lambda edit: f"{type(edit).__name__} {edit.point}",
)
def test_extracted_under_an_edit_equals_captured_under_it(phi, edit):
    rows = make_rows(*TEXTS)
    given = {"pool": "mean", "tokens": "first:6"}
    extracted = extract(phi, rows, points=ALL_POINTS, dtype="float32", edits=[edit], **given)
    with phi.steer([edit]):
        assert_equal(extracted, Plain(phi, ALL_POINTS), rows, **given)
    plain = extract(phi, rows, points="final_norm, resid_post.2", dtype="float32", **given)
    changed = [n for n, x in plain.columns.items() if not np.allclose(x, extracted.columns[n])]
    assert "final_norm.mean" in changed


def test_a_steered_store_is_another_and_neither_is_resumed_as_the_other(phi, tmp_path):
    given = {"points": "resid_post.1", "pool": "mean"}
    phi.extract(["a text"], tmp_path / "plain", **given)
    with phi.steer({"resid_post.0": torch.ones(32)}):
        phi.extract(["a text"], tmp_path / "steered", **given)
        with pytest.raises(StoreError, match=r"job\.edits"):
            phi.extract(["a text"], tmp_path / "plain", **given)
    plain, steered = (open_store(tmp_path / name) for name in ("plain", "steered"))
    assert [edit["edit"] for edit in steered.manifest["job"]["edits"]] == ["Add"]
    assert plain.manifest["job"]["edits"] == []
    name = "resid_post.1.mean"
    assert not np.allclose(plain[name].float32(), steered[name].float32())


def test_edits_that_would_do_nothing_or_something_else_are_refused(phi):
    def make(edit, **settings):
        return Extractor(phi.model, phi.tokenizer, make_options(**settings), [edit])

    head = Scale(Point("logits"), 2.0)
    with pytest.raises(UnsupportedError, match="an edit of logits would do nothing"):
        make(head, points="logits", top_k=3)
    assert make(head, points="final_norm")
    for edit in (
        Scale(Point("z", 1), 0.0, positions=(0,)),
        Knockout(Point("attn_scores", 1), keys=(0,)),
    ):
        with pytest.raises(UnsupportedError, match="counts positions from the start of a text"):
            make(edit, points="resid_post.2", overflow="window")
        assert make(edit, points="resid_post.2", overflow="truncate")
    late = Add(Point("resid_post", 1), torch.zeros(32), phase="completion")
    with pytest.raises(UnsupportedError, match="is for the completion alone"):
        make(late, points="resid_post.2")
    with pytest.raises(ValueError, match=r"vector at resid_post.1 has shape"):
        make(Add(Point("resid_post", 1), torch.zeros(31)), points="resid_post.2")
