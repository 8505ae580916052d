import dataclasses

import pytest
import torch

from phiscope.activations.edits import Add
from phiscope.activations.forward import capture_batches
from phiscope.activations.keeping import Keep
from phiscope.activations.points import Point, resolve_points
from phiscope.model import PhiForCausalLM


def collect(model, prompts, points, **options):
    rows = {}
    for batch, plan in capture_batches(model, prompts, resolve_points(points, 3), **options):
        rows.update((row, plan.rows(i)) for i, row in enumerate(batch))
    return [rows[row] for row in range(len(prompts))]


@pytest.mark.parametrize("token_budget", [1, 8, 13, 1000])
def test_batches_of_any_size_give_the_same_rows(model, ids, token_budget):
    points = "resid_post.1, attn_probs.0, logits"
    together = collect(model, ids, points, token_budget=token_budget)
    for prompt, rows in zip(ids, together, strict=True):
        alone = collect(model, [prompt], points)[0]
        for name, expected in alone.items():
            assert (rows[name] - expected).abs().max() < 1e-11, name


def test_embeddings_and_ids_in_one_batch_equal_ids(model, ids):
    embedded = model.model.embed_tokens(torch.tensor(ids[0]))
    mixed = collect(model, [embedded, ids[1], torch.tensor(ids[2])], "resid_post.2")
    plain = collect(model, ids, "resid_post.2")
    for ours, expected in zip(mixed, plain, strict=True):
        assert (ours["resid_post.2"] - expected["resid_post.2"]).abs().max() < 1e-12


def test_pooled_batches_name_their_rows(model, ids):
    keep = Keep(reducers=("mean",), dtype=torch.float32)
    points = resolve_points("resid_post.0", 3)
    plain = collect(model, ids, "resid_post.0")
    for batch, plan in capture_batches(model, ids, points, keep=keep, token_budget=13):
        for row, pooled in zip(batch, plan.pooled()["resid_post.0", "mean"], strict=True):
            expected = plain[row]["resid_post.0"].mean(0)
            assert pooled.dtype == torch.float32
            assert (pooled - expected).abs().max() < 1e-5


def test_edits_hold_for_every_prompt(model, ids):
    steering = Add(Point("resid_post", 0), torch.ones(64), 2.0)
    plain = collect(model, ids, "resid_post.0")
    steered = collect(model, ids, "resid_post.0", edits=[steering])
    for before, after in zip(plain, steered, strict=True):
        assert torch.allclose(after["resid_post.0"], before["resid_post.0"] + 2.0)


def test_a_fault_is_found_at_the_call_and_not_at_the_first_batch(model, ids):
    points = [Point("resid_post", 0)]
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        capture_batches(model, [ids[0], []], points)
    with pytest.raises(ValueError, match=r"vector at resid_post.0 has shape"):
        capture_batches(model, ids, points, edits=[Add(points[0], torch.ones(3))])


def test_dropout_is_never_left_on(model, ids):
    config = dataclasses.replace(model.config, resid_pdrop=0.1)
    random = PhiForCausalLM(config).double()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        collect(random, ids, "resid_post.0")
    collect(random.eval(), ids, "resid_post.0")
