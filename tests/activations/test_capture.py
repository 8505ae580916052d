import gc
import weakref

import pytest
import torch
from oracle import exact_softmax, make_model, make_peer

from phiscope.activations.capture import CapturePlan, make_step_plan, plan_capture
from phiscope.activations.edits import Scale
from phiscope.activations.inspection import Inspection, make_inspection
from phiscope.activations.keeping import Keep
from phiscope.activations.points import POINTS, Point, resolve_points
from phiscope.cache import KVCache
from phiscope.errors import NonFiniteError, PointError
from phiscope.packing import pack, pack_lengths


def capture(model, sequences, points, **options):
    tokens, packed = pack(sequences)
    plan = plan_capture(packed, resolve_points(points, 3), **options)
    if plan.wants("logits"):
        model(tokens, packed, plan=plan)
    else:
        model.model(tokens, packed, plan=plan)
    return plan


def their_points(model, ids):
    """Every point as transformers' modules compute it, under our names."""
    peer = make_peer(model, attention="eager")
    found = {}
    for layer, block in enumerate(peer.model.layers):
        attention, mlp = block.self_attn, block.mlp
        norms = model.config.qk_layernorm
        queries = attention.q_layernorm if norms else attention.q_proj
        keys = attention.k_layernorm if norms else attention.k_proj
        for name, module, takes in (
            ("resid_pre", block, "args"),
            ("ln_out", block.input_layernorm, "output"),
            ("q", queries, "output"),
            ("k", keys, "output"),
            ("v", attention.v_proj, "output"),
            ("z", attention.dense, "args"),
            ("attn_out", attention.dense, "output"),
            ("mlp_pre", mlp.fc1, "output"),
            ("mlp_act", mlp.fc2, "args"),
            ("mlp_out", mlp.fc2, "output"),
            ("resid_post", block, "output"),
        ):
            _record(found, f"{name}.{layer}", module, takes)
    with exact_softmax():
        output = peer(
            torch.tensor([ids]), output_hidden_states=True, output_attentions=True, use_cache=True
        )
    heads = range(model.config.num_hidden_layers)
    for layer in heads:
        probs = found[f"attn_probs.{layer}"] = output.attentions[layer][0]  # (heads, T, T)
        found[f"attn_entropy.{layer}"] = -(probs * probs.clamp(min=1e-300).log()).sum(2).T
        found[f"attn_received.{layer}"] = probs.sum(1).T
        found[f"k_rot.{layer}"] = output.past_key_values.layers[layer].keys[0].transpose(0, 1)
        if model.config.qk_layernorm:  # transformers' (B, H, T, D)
            for name in (f"q.{layer}", f"k.{layer}"):
                found[name] = found[name].transpose(0, 1)
    found["embeddings"] = output.hidden_states[0][0]
    found["final_norm"] = output.hidden_states[-1][0]
    found["logits"] = output.logits[0]
    return found


def _record(found, name, module, takes):
    def see(module, args, kwargs, output):
        seen = output if takes == "output" else (args or tuple(kwargs.values()))[0]
        found[name] = (seen[0] if isinstance(seen, tuple) else seen)[0]

    module.register_forward_hook(see, with_kwargs=True)


@pytest.mark.parametrize("variant", ["phi", "grouped", "qk_layernorm"])
def test_every_point_equals_transformers(models, every_point, ids, variant):
    model = models[variant]
    plan = capture(model, ids, every_point)
    for sequence in (0, 2):
        ours, theirs = plan.rows(sequence), their_points(model, ids[sequence])
        derived = ("q_rot", "attn_scores")  # transformers shows them nowhere: tested below
        assert set(ours) - set(theirs) == {f"{n}.{layer}" for n in derived for layer in range(3)}
        for name, expected in theirs.items():
            gap = (ours[name].reshape(expected.shape) - expected).abs().max()
            assert gap < 1e-9, name


@pytest.mark.parametrize("variant", ["phi", "grouped", "qk_layernorm"])
def test_scores_are_products_of_rotated_queries_and_keys(models, every_point, ids, variant):
    rows = capture(models[variant], ids, every_point).rows(2)
    for layer in range(3):
        q, k = rows[f"q_rot.{layer}"], rows[f"k_rot.{layer}"]
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        products = torch.einsum("thd,khd->htk", q, k) / q.shape[-1] ** 0.5
        scores, future = rows[f"attn_scores.{layer}"], torch.ones(12, 12).triu(1).bool()
        assert torch.equal(scores.isneginf(), future.expand_as(scores))
        assert (scores - products)[:, ~future].abs().max() < 1e-9
        assert (scores.softmax(-1) - rows[f"attn_probs.{layer}"]).abs().max() < 1e-12


def test_a_rotation_keeps_lengths_and_the_dimensions_beyond_it(model, ids):
    rows = capture(model, ids, "q.1,q_rot.1").rows(2)
    before, after = rows["q.1"], rows["q_rot.1"]
    assert torch.equal(before[..., 8:], after[..., 8:])
    assert torch.allclose(before.norm(dim=-1), after.norm(dim=-1), atol=1e-12)
    assert not torch.allclose(before[1:], after[1:])


def test_the_stream_is_the_sum_of_its_parts(model, ids):
    names = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    rows = capture(model, ids, [f"{name}.[:]" for name in names]).rows(0)
    for layer in range(3):
        before, attention, mlp, after = (rows[f"{name}.{layer}"] for name in names)
        assert (before + attention + mlp - after).abs().max() < 1e-12


@pytest.mark.parametrize("name", POINTS)
def test_each_point_alone_equals_all_points_together(model, every_point, ids, name):
    point = next(p for p in every_point if p.name == name and p.layer in (None, 1))
    together = capture(model, ids, every_point)
    alone = capture(model, ids, [point])
    assert alone.depth == point.depth
    for sequence in range(3):
        expected = together.rows(sequence)[str(point)]
        assert (alone.rows(sequence)[str(point)] - expected).nan_to_num().abs().max() < 1e-12


@pytest.mark.parametrize("name", POINTS)
def test_packed_equals_alone(model, every_point, ids, name):
    points = [p for p in every_point if p.name == name]
    packed = capture(model, ids, points)
    for sequence, tokens in enumerate(ids):
        alone = capture(model, [tokens], points).rows(0)
        for key, rows in packed.rows(sequence).items():
            assert rows.shape == alone[key].shape
            assert (rows - alone[key]).nan_to_num().abs().max() < 1e-12


@pytest.mark.parametrize("point", ["embeddings", "resid_pre.1", "resid_post.0", "q.0", "z.0"])
def test_blocks_above_the_last_point_do_not_run(model, ids, point):
    model = make_model(model.config)
    expected = capture(model, ids, point).rows(2)[point]
    poisoned = 0 if point == "embeddings" else 1
    for block in model.model.layers[poisoned:]:
        for parameter in block.parameters():
            parameter.fill_(float("nan"))
    assert torch.equal(capture(model, ids, point).rows(2)[point], expected)
    with pytest.raises(NonFiniteError):
        capture(model, ids, "resid_post.2").rows(2)


def test_sequences_of_one_batch_want_different_things(model, ids):
    wants = ["resid_post.0, attn_probs.2", (), "q.1, resid_pre.1"]
    each = [make_inspection(model.config, points) for points in wants]
    tokens, packed = pack(ids)
    plan = CapturePlan(packed, each)
    model.model(tokens, packed, plan=plan)
    whole = capture(model, ids, "resid_post.0, attn_probs.2, q.1")
    assert plan.depth == 3
    assert plan.rows(1) == {}
    assert list(plan.rows(2)) == ["q.1", "resid_pre.1"]
    assert torch.equal(plan.rows(2)["q.1"], whole.rows(2)["q.1"])
    assert torch.equal(plan.rows(2)["resid_pre.1"], whole.rows(2)["resid_post.0"])
    assert torch.equal(plan.rows(0)["attn_probs.2"], whole.rows(0)["attn_probs.2"])


def test_cached_chunks_equal_the_whole(model, every_point, ids):
    inspections = [Inspection(tuple(every_point)), None]
    whole = capture(model, [ids[2]], every_point).rows(0)
    cache = KVCache(model.config, num_slots=2, num_places=64, dtype=torch.float64)
    pieces = []
    for start, end in ((0, 5), (5, 6), (6, 12)):
        packed = pack_lengths([end - start, 1], starts=[start, start // 5], slots=[1, 0])
        plan = make_step_plan(packed, inspections)
        model(torch.tensor([*ids[2][start:end], 3]), packed, cache=cache, plan=plan)
        pieces.append(plan.rows(0))
    for point in every_point:
        if point.kind.shape != "map" and point.name != "attn_received":
            joined = torch.cat([piece[str(point)] for piece in pieces])
            assert (joined - whole[str(point)]).abs().max() < 1e-12
    last = pieces[-1]["attn_probs.1"]
    assert (last - whole["attn_probs.1"][:, 6:]).abs().max() < 1e-12
    received = whole["attn_received.1"].clone()  # keys of earlier chunks receive from later ones
    for piece in pieces:
        received[: len(piece["attn_received.1"])] -= piece["attn_received.1"]
    assert received.abs().max() < 1e-12


def test_a_step_plan_runs_the_whole_model_and_knows_which_logits_there_are(model, ids):
    tokens, packed = pack(ids)
    inspections = [make_inspection(model.config, "logits, resid_post.0") for _ in ids]
    rows = [5, 6, 19]
    plan = make_step_plan(packed, inspections, logit_rows=rows)
    logits = model(tokens, packed, plan=plan, rows=torch.tensor(rows))
    assert plan.depth is None
    assert torch.equal(plan.rows(0)["logits"], logits[:2])
    assert plan.rows(1)["logits"].shape == (0, 61)
    assert torch.equal(plan.rows(2)["logits"], logits[2:])
    with pytest.raises(ValueError, match="give the plan the logit_rows"):
        model(tokens, packed, plan=make_step_plan(packed, inspections), rows=torch.tensor([0]))
    with pytest.raises(ValueError, match="20 rows of logits for 3 tokens"):
        model(tokens, packed, plan=make_step_plan(packed, inspections, logit_rows=rows))


def test_only_wanted_maps_are_computed(ids):
    _, packed = pack(ids)
    assert plan_capture(packed, [Point("attn_probs", 1)]).wants_maps(1)
    assert not plan_capture(packed, [Point("attn_probs", 1)]).wants_maps(0)
    assert not plan_capture(packed, [Point("attn_out", 1), Point("z", 1)]).wants_maps(1)
    silenced = plan_capture(packed, [Point("z", 2)], edits=[Scale(Point("attn_probs", 2), 0.5)])
    assert silenced.wants_maps(2)


def test_what_is_kept_is_a_copy(model, ids):
    seen = torch.randn(20, 64)
    _, packed = pack(ids)
    plan = plan_capture(packed, [Point("resid_post", 0)])
    expected = seen.clone()
    assert plan.at("resid_post", 0, seen) is seen
    seen.zero_()
    first, again = plan.rows(0)["resid_post.0"], plan.rows(0)["resid_post.0"]
    first.zero_()
    assert torch.equal(again, expected[:7])
    assert torch.equal(plan.flat()["resid_post.0"], expected)


def test_one_row_does_not_keep_the_batch_alive(ids):
    seen = torch.randn(20, 64)
    _, packed = pack(ids)
    plan = plan_capture(packed, [Point("resid_post", 0)])
    plan.at("resid_post", 0, seen)
    batch = weakref.ref(seen.untyped_storage())
    row = plan.rows(1)["resid_post.0"]
    del seen, plan
    gc.collect()
    assert batch() is None
    assert row.untyped_storage().nbytes() == 64 * 4


def test_captured_rows_can_be_trained_on(model, ids):
    tokens, packed = pack(ids)
    plan = plan_capture(packed, [Point("resid_post", 0)])
    with torch.inference_mode():
        model.model(tokens, packed, plan=plan)
        rows = plan.rows(0)["resid_post.0"]
    weight = torch.ones(64, dtype=rows.dtype, requires_grad=True)
    (rows @ weight).sum().backward()
    assert torch.equal(weight.grad, rows.sum(0))


@pytest.mark.parametrize("reducer", ["mean", "last", "weighted_mean", "max", "first"])
def test_pooled_while_running_equals_pooled_afterwards(model, ids, reducer):
    points = "resid_post.1, z.0, final_norm"
    pooled = capture(model, ids, points, keep=Keep(reducers=(reducer,))).pooled()
    rows = capture(model, ids, points)
    for sequence in range(3):
        for name, x in rows.rows(sequence).items():
            weights = torch.arange(1, len(x) + 1, dtype=x.dtype).view(-1, *[1] * (x.ndim - 1))
            expected = {
                "mean": x.mean(0),
                "last": x[-1],
                "weighted_mean": (x * weights).sum(0) / weights.sum(),
                "max": x.amax(0),
                "first": x[0],
            }[reducer]
            assert (pooled[name, reducer][sequence] - expected).abs().max() < 1e-12


def test_pooling_refuses_what_cannot_be_pooled(ids):
    _, packed = pack(ids)
    pooling = Keep(reducers=("mean",))
    for name in ("attn_probs", "attn_entropy", "attn_received"):
        with pytest.raises(PointError, match=rf"{name}.0 comes from a map.*extract it"):
            plan_capture(packed, [Point(name, 0)], keep=pooling)
    mixed = [Inspection((Point("q", 0),)), Inspection(), Inspection()]
    with pytest.raises(ValueError, match="same points for every sequence"):
        CapturePlan(packed, mixed, keep=pooling)
    for plan, read, remedy in (
        (plan_capture(packed, [Point("q", 0)], keep=pooling), "rows", r"read pooled\(\)"),
        (plan_capture(packed, [Point("q", 0)], keep=pooling), "flat", r"read pooled\(\)"),
        (plan_capture(packed, [Point("q", 0)]), "pooled", r"read rows\(\)"),
    ):
        with pytest.raises(ValueError, match=remedy):
            getattr(plan, read)(*[0] * (read == "rows"))


def test_fault_50_a_non_finite_row_fails_only_its_own_sequence(model, ids):
    tokens, packed = pack(ids)
    inputs = model.model.embed_tokens(tokens).clone()
    inputs[7] = float("nan")  # the second sequence's only token
    points = "resid_post.1, attn_scores.1"
    plan = plan_capture(packed, resolve_points(points, 3))
    model.model(inputs, packed, plan=plan)
    healthy = capture(model, ids, points).rows(2)
    assert torch.equal(plan.rows(2)["resid_post.1"], healthy["resid_post.1"])
    assert plan.rows(0)["resid_post.1"].isfinite().all()
    with pytest.raises(NonFiniteError, match=r"resid_post.1 of sequence 1 has a NaN"):
        plan.rows(1)
    with pytest.raises(NonFiniteError, match=r"resid_post.1 of sequence 1"):
        plan.flat()


@pytest.mark.parametrize("huge", [65520.0, -1e6, 3e38])
def test_fault_51_a_state_beyond_fp16_is_refused_or_flagged(ids, huge):
    seen = torch.ones(20, 64)
    seen[3, 5] = seen[3, 6] = huge
    _, packed = pack(ids)
    points = [Point("resid_post", 0)]
    refusing = plan_capture(packed, points, keep=Keep(dtype=torch.float16))
    clamping = plan_capture(packed, points, keep=Keep(dtype=torch.float16, overflow="clamp"))
    whole = plan_capture(packed, points, keep=Keep(dtype=torch.float32))
    for plan in (refusing, clamping, whole):
        plan.at("resid_post", 0, seen)
    with pytest.raises(NonFiniteError, match=r"resid_post.0 of sequence 0 reaches .* float32"):
        refusing.rows(0)
    assert refusing.rows(2)["resid_post.0"].dtype == torch.float16
    assert clamping.rows(0)["resid_post.0"][3, 5] == (65504 if huge > 0 else -65504)
    assert [clamping.clamped(s)["resid_post.0"] for s in range(3)] == [2, 0, 0]
    assert whole.rows(0)["resid_post.0"][3, 5] == huge
    assert whole.clamped(0)["resid_post.0"] == 0


def test_fault_51_bfloat16_which_has_no_65504_is_clamped_to_it(ids):
    seen = torch.ones(20, 64, dtype=torch.bfloat16)
    seen[3, 5:8] = torch.tensor([65536.0, -1e30, 65280.0])
    _, packed = pack(ids)
    keep = Keep(dtype=torch.float16, overflow="clamp")
    plan = plan_capture(packed, [Point("resid_post", 0)], keep=keep)
    plan.at("resid_post", 0, seen)
    assert plan.rows(0)["resid_post.0"][3, 5:8].tolist() == [65504.0, -65504.0, 65280.0]
    assert plan.clamped(0) == {"resid_post.0": 2}


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_fault_51_an_infinity_is_never_clamped_into_a_number(ids, value):
    seen = torch.ones(20, 64)
    seen[3, 5] = value
    _, packed = pack(ids)
    keep = Keep(dtype=torch.float16, overflow="clamp")
    plan = plan_capture(packed, [Point("resid_post", 0)], keep=keep)
    plan.at("resid_post", 0, seen)
    with pytest.raises(NonFiniteError, match="has a NaN or an infinity"):
        plan.rows(0)


def test_fault_51_masked_scores_stay_minus_infinity(ids):
    scores = torch.tensor([[[1e5, float("-inf")], [-1e5, 2.0]]])
    _, packed = pack([[3, 4]])
    keep = Keep(dtype=torch.float16, overflow="clamp")
    plan = plan_capture(packed, [Point("attn_scores", 0)], keep=keep)
    plan.at("attn_scores", 0, scores, 0)
    kept = plan.rows(0)["attn_scores.0"]
    assert kept.tolist() == [[[65504.0, float("-inf")], [-65504.0, 2.0]]]
    assert plan.clamped(0) == {"attn_scores.0": 2}


def test_fault_51_pooled_values_are_checked_as_well(ids):
    seen = torch.full((20, 64), 6e4, dtype=torch.float16)
    seen[7] = 1.0
    _, packed = pack(ids)
    keep = Keep(dtype=torch.float16, reducers=("mean",))
    plan = plan_capture(packed, [Point("resid_post", 0)], keep=keep)
    plan.at("resid_post", 0, seen)  # sums beyond fp16, means within it
    assert torch.equal(plan.pooled()["resid_post.0", "mean"], seen[[0, 7, 8]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("device", ["cpu", None])
def test_what_a_gpu_computed_is_kept_where_asked(ids, device):
    seen = torch.randn(20, 64)
    _, packed = pack(ids, device="cuda")
    keep = Keep(dtype=torch.float16, device=device)
    plan = plan_capture(packed, [Point("resid_post", 0)], keep=keep)
    on_gpu = seen.cuda()
    plan.at("resid_post", 0, on_gpu)
    on_gpu.zero_()
    rows = plan.rows(2)["resid_post.0"]
    assert rows.device.type == (device or "cuda")
    assert torch.equal(rows.cpu(), seen[8:].half())


def test_a_plan_that_was_not_run_says_so(ids):
    _, packed = pack(ids)
    plan = plan_capture(packed, [Point("resid_post", 0)])
    with pytest.raises(ValueError, match=r"resid_post.0 was not reached"):
        plan.rows(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.int8}, "floating dtype"),
        ({"overflow": "ignore"}, "refuse or clamp"),
        ({"reducers": ("median",)}, "no pooling 'median'; choose from mean"),
    ],
)
def test_a_way_of_keeping_is_checked_when_it_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        Keep(**options)
