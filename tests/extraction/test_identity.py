"""A job's identity is the same where its bytes would be, and differs, by name, where they may."""

import dataclasses
import json
from contextlib import contextmanager

import pytest
import torch
from plain_extraction import MERGES, make_phi

from phiscope.activations.edits import Ablate, Add, Scale, Transform
from phiscope.activations.points import Point
from phiscope.checkpoint import load_model, save_checkpoint
from phiscope.errors import UnsupportedError
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.identity import digest_weights, identify
from phiscope.extraction.options import make_options
from phiscope.model import PhiForCausalLM
from phiscope.tokenizer import tokenizer_from_merges
from phiscope.wide import WideEmbedding

SPEC = {"format": "jsonl", "text": "body"}
STEERED = Point("resid_post", 0)


@pytest.fixture(scope="module")
def phi():
    return make_phi(num_key_value_heads=4)


def tell(phi, *, model=None, tokenizer=None, edits=(), spec=SPEC, **settings):
    """The identity as it would be read back from a file."""
    given = {"points": "resid_post.1", "pool": "mean", **settings}
    extractor = Extractor(
        model or phi.model, tokenizer or phi.tokenizer, make_options(**given), edits
    )
    return json.loads(json.dumps(identify(extractor, spec), allow_nan=False))


@contextmanager
def fp32_products_in(precision):
    """As `torch.set_float32_matmul_precision` leaves it."""
    backend, before = torch.backends.mkldnn.matmul, torch.backends.mkldnn.matmul.fp32_precision
    backend.fp32_precision = precision
    try:
        yield
    finally:
        backend.fp32_precision = before


def find_changes(old, new, name=""):
    """The keys whose values differ, written with dots."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [name[1:]]
    assert old.keys() == new.keys()
    return [c for key in old for c in find_changes(old[key], new[key], f"{name}.{key}")]


@pytest.mark.parametrize("layout", ["A", "B", "C", "D"])
def test_the_same_weights_in_any_layout_are_the_same_model(phi, tmp_path, layout):
    save_checkpoint(phi.model, tmp_path / "it", layout=layout)
    loaded = load_model(tmp_path / "it", dtype=torch.float64)
    for points in ("resid_post.1", "final_norm"):
        assert tell(phi, model=loaded, points=points) == tell(phi, points=points)


@pytest.mark.parametrize("layers", [2, 3])
def test_a_model_of_as_many_layers_as_are_read_is_the_same_model(phi, layers):
    part = PhiForCausalLM(phi.config, layers=layers).double().eval().requires_grad_(False)
    part.load_state_dict(phi.model.state_dict(), strict=False)
    assert tell(phi, model=part) == tell(phi)


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("model.embed_tokens.weight", "embeddings"),
        ("model.layers.1.mlp.fc2.bias", "resid_post.1"),
        ("model.layers.0.self_attn.qkv_proj.weight", "resid_post.1"),
        ("model.final_layernorm.bias", "final_norm"),
        ("lm_head.weight", "logits"),
    ],
)
def test_one_changed_weight_that_is_read_is_another_model(phi, name, points):
    kept = {"points": points, "pool": "last", "top_k": 3 if points == "logits" else None}
    before, weight = tell(phi, **kept), phi.model.state_dict()[name]
    place = (-1,) * weight.ndim
    value = weight[place].item()
    weight[place] = value + 1e-12
    assert find_changes(before, tell(phi, **kept)) == ["model.weights"]
    weight[place] = value
    assert tell(phi, **kept) == before


def test_weights_that_are_not_read_do_not_matter(phi):
    for depth, name in ((2, "model.layers.2.mlp.fc1.bias"), (None, "lm_head.bias")):
        before = digest_weights(phi.model, depth, head=False)
        weight = phi.model.state_dict()[name]
        kept = weight.clone()
        weight += 1
        assert digest_weights(phi.model, depth, head=False) == before
        weight.copy_(kept)


def test_a_weight_is_told_by_its_name_dtype_and_shape_too(phi):
    model = make_phi(num_key_value_heads=4).model
    digests = {digest_weights(model, 3, head=False)}
    state = model.state_dict()
    state["model.layers.0.mlp.fc2.bias"][:] = 0
    state["model.layers.1.mlp.fc2.bias"][:] = 1
    digests.add(digest_weights(model, 3, head=False))
    state["model.layers.0.mlp.fc2.bias"][:] = 1
    state["model.layers.1.mlp.fc2.bias"][:] = 0
    digests.add(digest_weights(model, 3, head=False))
    digests.add(digest_weights(model.float(), 3, head=False))
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"points": "resid_post.0"}, {"model.weights", "reading.points"}),
        ({"points": "resid_pre.1, resid_post.1"}, {"reading.points"}),
        ({"pool": ["mean", "max"]}, {"reading.pool"}),
        ({"pool": None}, {"reading.pool"}),
        ({"tokens": "last:3"}, {"reading.tokens"}),
        ({"overflow": "truncate"}, {"reading.overflow"}),
        ({"window": 32}, {"reading.window", "reading.stride"}),
        ({"overflow": "window", "stride": 5}, {"reading.overflow", "reading.stride"}),
        ({"dtype": "float32"}, {"reading.dtype"}),
        ({"token_budget": 100}, {"reading.token_budget"}),
        ({"share_prefixes": False}, {"reading.share_prefixes"}),
        ({"spec": {**SPEC, "text": "title"}}, {"input.text"}),
        ({"tokenizer": tokenizer_from_merges(MERGES[:-1])}, {"tokenizer"}),
    ],
    ids=lambda given: "-".join(sorted(given)),
)
def test_whatever_was_asked_for_otherwise_is_named(phi, settings, changed):
    assert set(find_changes(tell(phi), tell(phi, **settings))) == changed


@pytest.mark.parametrize("other", [{"top_k": 4}, {"token_ids": [3, 1]}, {"token_ids": [1, 3]}])
def test_which_logits_are_kept_is_part_of_it(phi, other):
    given = {"points": "logits", "pool": "last"}
    changes = find_changes(tell(phi, **given, top_k=3), tell(phi, **given, **other))
    assert set(changes) <= {"reading.top_k", "reading.token_ids"} != set()
    assert changes


@pytest.mark.parametrize("settings", [{"window": 64}, {"token_budget": 2048}, {"pool": ["mean"]}])
def test_what_is_the_default_anyway_changes_nothing(phi, settings):
    assert tell(phi, **settings) == tell(phi)


def test_another_shape_of_the_model_is_another_model(phi):
    for changes in ({"layer_norm_eps": 1e-6}, {"rope_theta": 1e5}, {"hidden_act": "relu"}):
        other = PhiForCausalLM(dataclasses.replace(phi.config, **changes)).double().eval()
        other.load_state_dict(phi.model.state_dict())
        assert find_changes(tell(phi), tell(phi, model=other)) == ["model.config"]


def test_what_a_config_says_beside_the_forward_does_not_matter(phi):
    unread = {"resid_pdrop": 0.1, "eos_token_id": 7, "dtype": "float16", "extra": {"a": 1}}
    other = PhiForCausalLM(dataclasses.replace(phi.config, **unread)).double().eval()
    other.load_state_dict(phi.model.state_dict())
    assert tell(phi, model=other) == tell(phi)


def test_threads_attention_and_arithmetic_are_part_of_it(phi):
    before = tell(phi)
    torch.set_num_threads(2)
    assert find_changes(before, tell(phi)) == ["software.threads"]
    torch.set_num_threads(1)
    with fp32_products_in("bf16"):
        assert find_changes(before, tell(phi)) == ["software.products"]
    phi.model.set_attention("eager")
    assert find_changes(before, tell(phi)) == ["software.attention"]
    phi.model.set_attention("sdpa")
    model = make_phi().model.bfloat16()
    narrow = tell(phi, model=model)
    model.model.embed_tokens = WideEmbedding(model.model.embed_tokens)
    assert find_changes(narrow, tell(phi, model=model)) == ["software.arithmetic"]


def test_every_part_of_an_edit_is_told(phi):
    vector = torch.arange(32.0)
    edits = [
        [],
        [Add(STEERED, vector)],
        [Add(STEERED, vector + 1e-6 * vector.flip(0))],
        [Add(STEERED, vector, scale=2.0)],
        [Add(Point("resid_post", 1), vector)],
        [Add(STEERED, vector, positions=(0,))],
        [Add(STEERED, vector), Scale(STEERED, 2.0)],
        [Scale(STEERED, 2.0), Add(STEERED, vector)],
        [Scale(Point("z", 0), 2.0, heads=(1,))],
        [Scale(Point("z", 0), 2.0, heads=(2,))],
        [Ablate(STEERED, vector)],
    ]
    told = [json.dumps(tell(phi, edits=some)["edits"]) for some in edits]
    assert len(set(told)) == len(edits)
    again = Add(STEERED, vector.clone().requires_grad_())
    assert tell(phi, edits=[again]) == tell(phi, edits=edits[1])


def test_a_transform_cannot_be_told_and_is_refused(phi):
    edit = Transform(STEERED, lambda rows, places: rows)
    with pytest.raises(UnsupportedError, match=r"Transform at resid_post\.0 has no fingerprint"):
        tell(phi, edits=[edit])
