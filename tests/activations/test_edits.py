import dataclasses

import pytest
import torch
from oracle import make_model

from phiscope.activations.capture import CapturePlan
from phiscope.activations.edits import Ablate, Add, Knockout, Replace, Scale, Transform
from phiscope.activations.inspection import Inspection, make_inspection
from phiscope.activations.points import POINTS, Point
from phiscope.cache import KVCache
from phiscope.errors import PointError
from phiscope.packing import pack, pack_lengths

STREAM, HEADS = Point("resid_post", 1), Point("z", 1)
SCORES, PROBS = Point("attn_scores", 1), Point("attn_probs", 1)
EDITABLE = [kind.name for kind in POINTS.values() if kind.shape != "head"]


def vector(size=64, seed=0):
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(model, sequences, edits_of_each, points=(), prompt_lengths=None):
    tokens, packed = pack(sequences)
    lengths = prompt_lengths or [None] * len(sequences)
    inspections = [
        Inspection(tuple(points), tuple(edits), length)
        for edits, length in zip(edits_of_each, lengths, strict=True)
    ]
    plan = CapturePlan(packed, inspections, whole=True)
    return model(tokens, packed, plan=plan), plan


def edit_for(point):
    if point.kind.shape == "map":
        return Knockout(point, (0, 2))
    return Transform(point, lambda rows, places: rows * 1.5 + 0.25)


@pytest.mark.parametrize("name", EDITABLE)
def test_an_edit_at_any_point_changes_its_sequence_and_no_neighbour(model, ids, name):
    point = Point(name, 1 if POINTS[name].in_block else None)
    maps = [Scale(point, 1.0)] if point.kind.shape == "map" else []  # the same attention kernel
    plain, _ = run(model, ids, [maps, maps, maps])
    edited, _ = run(model, ids, [maps, maps, [edit_for(point)]])
    assert torch.equal(edited[:8], plain[:8])
    assert not torch.allclose(edited[8:], plain[8:])


@pytest.mark.parametrize("name", EDITABLE)
def test_an_edit_in_a_batch_equals_the_edit_alone(model, ids, name):
    point = Point(name, 1 if POINTS[name].in_block else None)
    together, _ = run(model, ids, [[], [], [edit_for(point)]])
    alone, _ = run(model, [ids[2]], [[edit_for(point)]])
    assert (together[8:] - alone).abs().max() < 1e-11


def test_what_is_captured_at_an_edited_point_is_the_edited(model, ids):
    plain = run(model, ids, [[], [], []], [STREAM])[1].rows(0)["resid_post.1"]
    add = Add(STREAM, vector(), 3.0)
    points = [STREAM, Point("resid_pre", 2)]
    edited = run(model, ids, [[add], [], []], points)[1].rows(0)
    assert torch.equal(edited["resid_post.1"], plain + 3.0 * vector())
    assert torch.equal(edited["resid_pre.2"], edited["resid_post.1"])


def test_edits_apply_in_the_order_given(model, ids):
    add, scale = Add(STREAM, vector()), Scale(STREAM, 2.0)
    plain = run(model, [ids[0]], [[]], [STREAM])[1].rows(0)["resid_post.1"]
    for edits, expected in (
        ([add, scale], (plain + vector()) * 2),
        ([scale, add], plain * 2 + vector()),
    ):
        got = run(model, [ids[0]], [edits], [STREAM])[1].rows(0)["resid_post.1"]
        assert torch.allclose(got, expected)


def test_adding_the_difference_patches_one_run_into_another(model, ids):
    other, _ = run(model, [ids[2][:7]], [[]], [STREAM])
    rows = run(model, [ids[2][:7]], [[]], [STREAM])[1].rows(0)["resid_post.1"]
    patched, _ = run(model, [ids[0]], [[Replace(STREAM, rows, positions=tuple(range(7)))]])
    assert (patched - other).abs().max() < 1e-11


def test_replaced_positions_take_their_own_rows(model, ids):
    values = torch.stack([vector(seed=1), vector(seed=2)])
    edit = Replace(STREAM, values, positions=(5, 0))
    edit.check(model.config)
    plain = run(model, [ids[0]], [[]], [STREAM])[1].rows(0)["resid_post.1"]
    rows = run(model, [ids[0]], [[edit]], [STREAM])[1].rows(0)["resid_post.1"]
    assert torch.equal(rows[[5, 0]], values)
    assert torch.equal(rows[[1, 2, 3, 4, 6]], plain[[1, 2, 3, 4, 6]])


def test_positions_are_those_of_the_sequence_in_any_chunk_of_it(model, ids):
    values = torch.stack([vector(seed=1), vector(seed=2), vector(seed=3)])
    inspection = Inspection((STREAM,), (Replace(STREAM, values, positions=(5, 0, 6)),))
    cache = KVCache(model.config, num_slots=1, num_places=16, dtype=torch.float64)
    pieces = []
    for start, end in ((0, 4), (4, 6), (6, 7)):
        packed = pack_lengths([end - start], starts=[start], slots=[0])
        plan = CapturePlan(packed, [inspection])
        model.model(torch.tensor(ids[0][start:end]), packed, cache=cache, plan=plan)
        pieces.append(plan.rows(0)["resid_post.1"])
    assert torch.equal(torch.cat(pieces)[[5, 0, 6]], values)


@pytest.mark.parametrize("values", [vector(), vector()[None]], ids=["one row", "(1, hidden)"])
def test_one_row_replaces_one_position(model, ids, values):
    edit = Replace(STREAM, values, positions=(3,))
    edit.check(model.config)
    rows = run(model, [ids[0]], [[edit]], [STREAM])[1].rows(0)["resid_post.1"]
    assert torch.equal(rows[3], vector())


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_is_left_along_an_ablated_direction(model, ids, count):
    directions = torch.stack([vector(seed=seed) for seed in range(count)])
    edit = Ablate(STREAM, directions if count > 1 else directions[0])
    plain = run(model, [ids[0]], [[]], [STREAM])[1].rows(0)["resid_post.1"]
    rows = run(model, [ids[0]], [[edit]], [STREAM])[1].rows(0)["resid_post.1"]
    assert (rows @ directions.T).abs().max() < 1e-12
    removed = plain - rows  # lies in the span: least squares leaves no residual
    fitted = torch.linalg.lstsq(directions.T, removed.T).solution
    assert (directions.T @ fitted - removed.T).abs().max() < 1e-12


def test_a_silenced_head_puts_out_nothing(model, ids):
    edited, plan = run(model, [ids[0]], [[Scale(HEADS, 0.0, heads=(1, 3))]], [HEADS])
    plain, whole = run(model, [ids[0]], [[]], [HEADS])
    z, before = plan.rows(0)["z.1"], whole.rows(0)["z.1"]
    assert torch.equal(z[:, [1, 3]], torch.zeros_like(z[:, [1, 3]]))
    assert torch.equal(z[:, [0, 2]], before[:, [0, 2]])
    assert not torch.allclose(edited, plain)


def test_silencing_a_head_by_its_weights_equals_silencing_its_output(model, ids):
    by_output, _ = run(model, [ids[0]], [[Scale(HEADS, 0.0, heads=(2,))]])
    by_weights, _ = run(model, [ids[0]], [[Scale(PROBS, 0.0, heads=(2,))]])
    assert (by_output - by_weights).abs().max() < 1e-11


def test_knocked_out_keys_get_no_weight(model, ids):
    for point in (SCORES, PROBS):
        edit = Knockout(point, (0, 3), heads=(1,))
        probs = run(model, [ids[2]], [[edit]], [PROBS])[1].rows(0)["attn_probs.1"]
        plain = run(model, [ids[2]], [[]], [PROBS])[1].rows(0)["attn_probs.1"]
        assert torch.equal(probs[[0, 2, 3]], plain[[0, 2, 3]])
        others = probs[1].clone()
        if point == SCORES:
            assert torch.allclose(probs.sum(-1), torch.ones_like(probs.sum(-1)))
            assert (probs[1, [0, 3], [0, 3]] > 0).all()  # a token keeps itself
            others[[0, 3], [0, 3]] = 0
        assert torch.equal(others[:, [0, 3]], torch.zeros_like(others[:, [0, 3]]))


def test_knocking_out_the_first_key_of_one_block_equals_a_text_without_it(model, ids):
    """Rotations keep distances, up to the fp32 of their tables."""
    small = make_model(dataclasses.replace(model.config, num_hidden_layers=1))
    cut, _ = run(small, [ids[2]], [[Knockout(Point("attn_scores", 0), (0,))]])
    without, _ = run(small, [ids[2][1:]], [[]])
    assert (cut[1:] - without).abs().max() < 1e-5
    assert (cut[1:] - run(small, [ids[2]], [[]])[0][1:]).abs().max() > 0.01


def test_a_knock_out_holds_in_cached_chunks_too(model, ids):
    inspection = make_inspection(model.config, (), [Knockout(SCORES, (1, 6))])
    whole, _ = run(model, [ids[2]], [inspection.edits])
    cache = KVCache(model.config, num_slots=1, num_places=16, dtype=torch.float64)
    pieces = []
    for start, end in ((0, 4), (4, 12)):
        packed = pack_lengths([end - start], starts=[start], slots=[0])
        plan = CapturePlan(packed, [inspection])
        pieces.append(model(torch.tensor(ids[2][start:end]), packed, cache=cache, plan=plan))
    assert (torch.cat(pieces) - whole).abs().max() < 1e-11


@pytest.mark.parametrize(
    ("phase", "steered"), [("all", range(7)), ("prompt", range(4)), ("completion", range(4, 7))]
)
def test_an_edit_of_one_phase_leaves_the_other_alone(model, ids, phase, steered):
    plain = run(model, [ids[0]], [[]], [STREAM])[1].rows(0)["resid_post.1"]
    edit = Add(STREAM, vector(), phase=phase)
    rows = run(model, [ids[0]], [[edit]], [STREAM], [4])[1].rows(0)["resid_post.1"]
    changed = ((rows - plain).abs() > 0).all(-1).nonzero().flatten().tolist()
    assert changed == list(steered)


def test_without_a_prompt_length_everything_is_prompt(model, ids):
    plain, _ = run(model, [ids[0]], [[]])
    late, _ = run(model, [ids[0]], [[Add(STREAM, vector(), phase="completion")]])
    early, _ = run(model, [ids[0]], [[Add(STREAM, vector(), phase="prompt")]])
    everywhere, _ = run(model, [ids[0]], [[Add(STREAM, vector())]])
    assert torch.equal(late, plain)
    assert torch.equal(early, everywhere)


def test_positions_and_phase_both_hold(model, ids):
    edit = Add(STREAM, vector(), positions=(1, 5), phase="completion")
    plain = run(model, [ids[0]], [[]], [STREAM])[1].rows(0)["resid_post.1"]
    rows = run(model, [ids[0]], [[edit]], [STREAM], [4])[1].rows(0)["resid_post.1"]
    assert (rows - plain).abs().sum(-1).nonzero().flatten().tolist() == [5]


def test_a_transform_sees_each_row_with_its_position(model, ids):
    seen = []

    def note(rows, places):
        seen.append((tuple(rows.shape), list(places)))
        return rows

    cache = KVCache(model.config, num_slots=1, num_places=16, dtype=torch.float64)
    for start, end in ((0, 4), (4, 7)):
        packed = pack_lengths([end - start], starts=[start], slots=[0])
        edits = (Transform(HEADS, note), Transform(PROBS, note, positions=(2, 5)))
        plan = CapturePlan(packed, [Inspection(edits=edits)])
        model(torch.tensor(ids[0][start:end]), packed, cache=cache, plan=plan)
    assert seen == [
        ((1, 4, 4), [2]),
        ((4, 4, 16), [0, 1, 2, 3]),
        ((1, 4, 7), [5]),
        ((3, 4, 16), [4, 5, 6]),
    ]


@pytest.mark.parametrize(
    "edit",
    [
        Transform(Point("embeddings"), lambda rows, places: rows.zero_()),
        Scale(Point("embeddings"), 0.0, positions=(0, 2)),
        Add(Point("embeddings"), vector()),
    ],
)
def test_an_edit_leaves_the_tensor_it_is_shown_alone(model, ids, edit):
    embedded = model.model.embed_tokens(torch.tensor(ids[0]))
    before = embedded.clone()
    plan = CapturePlan(pack_lengths([7]), [Inspection((edit.point,), (edit,))])
    model.model(embedded, plan.packed, plan=plan)
    assert torch.equal(embedded, before)
    assert not torch.equal(plan.rows(0)["embeddings"], before)
    edit.apply(embedded, range(7), None)
    assert torch.equal(embedded, before)


def test_scores_of_zero_share_attention_among_what_may_be_seen(model, ids):
    edit = Scale(SCORES, 0.0, heads=(0, 2))
    probs = run(model, [ids[0]], [[edit]], [PROBS])[1].rows(0)["attn_probs.1"]
    uniform = torch.ones(7, 7).tril() / torch.arange(1, 8)[:, None]
    assert (probs[[0, 2]] - uniform).abs().max() < 1e-7
    assert (probs[[1, 3]] - uniform).abs().max() > 0.1


def test_an_edit_of_logits_knows_which_tokens_they_belong_to(model, ids):
    """Of two chunks of texts in a cache; only some rows' logits are computed."""
    edit = Transform(Point("logits"), lambda rows, places: rows * 0 + torch.tensor([places]).T)
    late = dataclasses.replace(edit, positions=(6, 8))
    cache = KVCache(model.config, num_slots=2, num_places=16, dtype=torch.float64)
    cache.data.zero_()  # what stands before the chunks does not matter here
    packed = pack_lengths([3, 4], starts=[2, 5], slots=[0, 1])
    rows = [1, 2, 4, 6]
    plan = CapturePlan(packed, [Inspection(edits=(e,)) for e in (edit, late)], logit_rows=rows)
    logits = model(torch.arange(7), packed, cache=cache, plan=plan, rows=torch.tensor(rows))
    assert logits[:2].unique(dim=1).flatten().tolist() == [3.0, 4.0]
    assert logits[[2, 3]].unique(dim=1).flatten().tolist() == [6.0, 8.0]


BAD = float("nan")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Add(STREAM, vector(63)), r"vector at resid_post.1 has shape \(63,\), not \(64,\)"),
        (lambda: Add(STREAM, vector() * BAD), r"vector at resid_post.1 has a NaN"),
        (lambda: Add(STREAM, vector(), BAD), r"scale at resid_post.1 must be finite"),
        (lambda: Add(STREAM, vector().long()), r"vector at resid_post.1 must be floating point"),
        (lambda: Add(HEADS, vector(16)), r"vector at z.1 has shape \(16,\), not \(4, 16\)"),
        (lambda: Add(PROBS, vector()), r"attn_probs.1 is a map.*Knockout"),
        (lambda: Replace(STREAM, vector(128)), r"values at resid_post.1 has shape \(128,\)"),
        (lambda: Replace(STREAM, vector(128).view(2, 64), positions=(1,)), r"\(2, 64\)"),
        (lambda: Replace(STREAM, vector() / 0), r"values at resid_post.1 has a NaN"),
        (lambda: Ablate(STREAM, vector(60)), r"direction at resid_post.1 has shape \(60,\)"),
        (lambda: Ablate(STREAM, torch.zeros(64)), r"ablate at resid_post.1 are zero"),
        (lambda: Ablate(STREAM, vector().expand(2, 64)), r"zero or dependent"),
        (lambda: Ablate(STREAM, vector().expand(70, 64)), r"zero or dependent"),
        (lambda: Scale(STREAM, float("inf")), r"factor at resid_post.1 must be finite"),
        (lambda: Scale(STREAM, 0.0, heads=(1,)), r"resid_post.1 has no heads; take z.1"),
        (lambda: Scale(HEADS, 0.0, heads=(4,)), r"heads at z.1 are 0 to 3"),
        (lambda: Scale(PROBS, 0.0, heads=(-1,)), r"heads at attn_probs.1 are 0 to 3"),
        (lambda: Scale(HEADS, 0.0, heads=()), r"heads at z.1 are 0 to 3"),
        (lambda: Knockout(HEADS, (1,)), r"attn_scores or attn_probs, not z.1"),
        (lambda: Knockout(PROBS, ()), r"keys at attn_probs.1 must be one or more"),
        (lambda: Knockout(PROBS, (0,), heads=(9,)), r"heads at attn_probs.1 are 0 to 3"),
        (lambda: Add(STREAM, vector(), positions=(-1,)), r"positions at resid_post.1 must be"),
        (lambda: Add(STREAM, vector(), positions=(2, 2)), r"positions at resid_post.1 must be"),
        (lambda: Add(STREAM, vector(), positions=()), r"positions at resid_post.1 must be"),
        (lambda: Add(STREAM, vector(), phase="later"), r"phase at resid_post.1 is all"),
        (lambda: Add(Point("resid_post", 9), vector()), r"layers 0 to 2"),
        (lambda: Scale(Point("attn_entropy", 1), 0.0), r"attn_entropy.1 can be read only; edit"),
        (lambda: Add(Point("attn_received", 2), vector(4)), r"read only; edit attn_probs.2"),
    ],
)
def test_fault_19_an_edit_that_does_not_fit_is_refused_naming_the_point(model, make, message):
    with pytest.raises(ValueError, match=message):
        make_inspection(model.config, (), [make()])


def test_fault_19_an_unchecked_edit_is_refused_where_it_would_apply(model, ids):
    with pytest.raises(ValueError, match=r"vector at resid_post.1 has shape \(63,\)"):
        run(model, ids, [[Add(STREAM, vector(63))], [], []])
    cutting = Transform(STREAM, lambda rows, places: rows[:, :5])
    with pytest.raises(ValueError, match=r"edit at resid_post.1 made \(7, 5\) of rows \(7, 64\)"):
        run(model, ids, [[cutting], [], []])


def test_an_inspection_refuses_points_above_the_loaded_blocks(model):
    with pytest.raises(PointError, match="above the 1 blocks"):
        make_inspection(model.config, "resid_post.2", loaded_layers=1)
    with pytest.raises(PointError, match="above the 1 blocks"):
        make_inspection(model.config, "resid_post.0", [Scale(HEADS, 0.0)], loaded_layers=1)
