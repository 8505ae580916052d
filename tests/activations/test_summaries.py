import pytest
import torch

from phiscope.activations.capture import plan_capture
from phiscope.activations.edits import Knockout, Scale
from phiscope.activations.points import Point, resolve_points
from phiscope.packing import pack

SPEC = "attn_entropy.1, attn_received.1, attn_probs.1"


def summarize(model, tokens, edits=()):
    flat, packed = pack([tokens])
    plan = plan_capture(packed, resolve_points(SPEC, 3), edits=edits)
    model.model(flat, packed, plan=plan)
    rows = plan.rows(0)
    return rows["attn_entropy.1"], rows["attn_received.1"], rows["attn_probs.1"]


@pytest.mark.parametrize("variant", ["phi", "grouped"])
def test_summaries_are_those_of_the_map(models, ids, variant):
    entropies, received, probs = summarize(models[variant], ids[2])
    assert entropies.shape == received.shape == (12, 4)
    for head in range(4):
        for query in range(12):
            seen = probs[head, query, : query + 1]
            expected = torch.distributions.Categorical(seen).entropy()
            assert (entropies[query, head] - expected).abs() < 1e-12
        for key in range(12):
            expected = sum(probs[head, query, key] for query in range(12))
            assert (received[key, head] - expected).abs() < 1e-12


def test_a_first_token_attends_to_itself_alone_and_all_weights_add_up(model, ids):
    entropies, received, _ = summarize(model, ids[2])
    assert torch.equal(entropies[0], torch.zeros_like(entropies[0]))
    assert (received.sum(0) - 12).abs().max() < 1e-12


def test_attention_spread_alike_has_the_entropy_of_a_choice_among_all(model, ids):
    entropies, received, _ = summarize(model, ids[0], [Scale(Point("attn_scores", 1), 0.0)])
    choices = torch.arange(1, 8, dtype=torch.float64)
    assert (entropies - choices.log()[:, None]).abs().max() < 1e-12
    shares = (1 / choices).flip(0).cumsum(0).flip(0)
    assert (received - shares[:, None]).abs().max() < 1e-12


def test_summaries_are_of_the_edited_map(model, ids):
    edits = [Knockout(Point("attn_probs", 1), keys=(2,), heads=(3,))]
    plain, edited = summarize(model, ids[2])[1], summarize(model, ids[2], edits)[1]
    assert torch.equal(edited[2, 3], torch.zeros_like(edited[2, 3]))
    assert torch.equal(edited[:, :3], plain[:, :3])
