import pytest
import torch
from oracle import make_peer

from phiscope.activations.capture import plan_capture
from phiscope.activations.conventions import (
    as_last_block,
    as_transformers,
    convention_points,
)
from phiscope.packing import pack


def capture(model, ids, convention):
    tokens, packed = pack([ids])
    plan = plan_capture(packed, convention_points(convention, 3))
    model.model(tokens, packed, plan=plan)
    return plan.rows(0), plan.depth


def test_the_transformers_convention_is_what_transformers_returns(model, ids):
    ours = as_transformers(capture(model, ids[2], "transformers")[0], 3)
    theirs = make_peer(model)(torch.tensor([ids[2]]), output_hidden_states=True).hidden_states
    assert len(ours) == len(theirs) == 4
    for state, expected in zip(ours, theirs, strict=True):
        assert (state - expected[0]).abs().max() < 1e-9


def test_the_last_block_convention_is_before_the_final_norm(model, ids):
    rows, depth = capture(model, ids[2], "last_block")
    state = as_last_block(rows, 3)
    final = as_transformers(capture(model, ids[2], "transformers")[0], 3)[-1]
    assert depth == 3
    assert (model.model.final_layernorm(state) - final).abs().max() < 1e-12
    assert (state - final).abs().max() > 0.1


def test_the_points_convention_holds_both_others(model, ids):
    rows = capture(model, ids[2], "points")[0]
    assert list(rows) == [
        "embeddings",
        "resid_post.0",
        "resid_post.1",
        "resid_post.2",
        "final_norm",
    ]
    assert torch.equal(as_last_block(rows, 3), rows["resid_post.2"])
    assert torch.equal(as_transformers(rows, 3)[-1], rows["final_norm"])


def test_a_convention_without_its_points_is_refused():
    with pytest.raises(ValueError, match=r"final_norm of this convention were not captured"):
        as_transformers({"embeddings": torch.ones(1), "resid_post.0": torch.ones(1)}, 2)
    with pytest.raises(ValueError, match=r"no convention 'hf'; choose from transformers"):
        convention_points("hf", 3)
