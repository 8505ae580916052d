import dataclasses

import pytest
import torch
from oracle import make_model, make_peer

from phiscope.activations.capture import plan_capture
from phiscope.activations.points import Point
from phiscope.attention import BACKENDS
from phiscope.cache import KVCache
from phiscope.config import PRESETS, PhiConfig, RopeScaling
from phiscope.errors import ContextLengthError, UnsupportedError
from phiscope.model import PhiForCausalLM
from phiscope.packing import pack, pack_lengths

SMALL = PhiConfig(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    rotary_dim=8,
    initializer_range=0.2,
)
LLAMA3 = RopeScaling(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
VARIANTS = {
    "phi-1": dataclasses.replace(SMALL, rotary_dim=8),  # half of head_dim
    "phi-2": dataclasses.replace(
        SMALL, hidden_size=80, num_attention_heads=4, rotary_dim=8, resid_pdrop=0.1
    ),  # two fifths
    "grouped": dataclasses.replace(SMALL, num_key_value_heads=2),
    "multi-query": dataclasses.replace(SMALL, num_key_value_heads=1),
    "qk_layernorm": dataclasses.replace(SMALL, qk_layernorm=True),
    "both": dataclasses.replace(SMALL, num_key_value_heads=2, qk_layernorm=True),
    "all rotary": dataclasses.replace(SMALL, rotary_dim=16),
    "theta": dataclasses.replace(SMALL, rope_theta=1e6),
    "linear": dataclasses.replace(SMALL, rope_scaling=RopeScaling(rope_type="linear", factor=2.0)),
    "dynamic": dataclasses.replace(
        SMALL, rope_scaling=RopeScaling(rope_type="dynamic", factor=2.0)
    ),
    "yarn": dataclasses.replace(
        SMALL,
        rope_scaling=RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
    ),
    "yarn in full": dataclasses.replace(
        SMALL,
        rope_scaling=RopeScaling(
            rope_type="yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            beta_fast=8.0,
            beta_slow=2.0,
            mscale=0.7,
            mscale_all_dim=0.9,
            truncate=False,
        ),
    ),
    "llama3": dataclasses.replace(SMALL, rope_scaling=LLAMA3),
    "silu": dataclasses.replace(SMALL, hidden_act="silu", layer_norm_eps=1e-3),
}
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def random_ids(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SMALL.vocab_size, (length,), generator=generator)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_transformers(name, dtype):
    model = make_model(VARIANTS[name], dtype=dtype)
    ids = random_ids(40)
    theirs = make_peer(model)(ids[None]).logits[0]
    assert relative(model(ids, pack_lengths([40])), theirs) < TOLERANCE[dtype]


def test_a_shrunk_preset_keeps_its_head_shape():
    assert [PRESETS[name].head_dim for name in ("phi-1", "phi-1_5", "phi-2")] == [64, 64, 80]


@pytest.mark.parametrize("backend", ["eager", "sdpa", "native", "flex"])
@pytest.mark.parametrize("lengths", [[7, 1, 20, 3], [9, 9, 9]])
def test_packed_equals_each_sequence_alone(backend, lengths):
    model = make_model(VARIANTS["grouped"])
    model.set_attention(backend)
    texts = [random_ids(length, seed).tolist() for seed, length in enumerate(lengths)]
    together = model(*pack(texts))
    alone = torch.cat([model(*pack([text])) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"eager", "flash"}))
@pytest.mark.parametrize("variant", ["phi-2", "grouped", "multi-query"])
@pytest.mark.parametrize("cached", [False, True])
def test_every_backend_equals_eager(backend, variant, cached):
    model = make_model(VARIANTS[variant])
    results = []
    for name in ("eager", backend):
        model.set_attention(name)
        results.append(run_in_chunks(model, cached))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


def run_in_chunks(model, cached):
    """Two sequences, in one go or in ragged chunks through a cache."""
    first, second = random_ids(11, 1), random_ids(17, 2)
    if not cached:
        return model(*pack([first.tolist(), second.tolist()]))
    cache = KVCache(model.config, num_slots=3, num_places=32, dtype=torch.float64)
    cache.data.fill_(float("nan"))  # so that places read before they are written would show
    begin = model(
        torch.cat([first[:4], second[:9]]),
        pack_lengths([4, 9], starts=[0, 0], slots=[2, 0]),
        cache=cache,
    )
    middle = model(
        torch.cat([first[4:5], second[9:]]),
        pack_lengths([1, 8], starts=[4, 9], slots=[2, 0]),
        cache=cache,
    )
    end = model(first[5:], pack_lengths([6], starts=[5], slots=[2]), cache=cache)
    return torch.cat([begin[:4], middle[:1], end, begin[4:], middle[1:]])


@pytest.mark.parametrize("backend", ["eager", "sdpa", "native", "flex"])
def test_cached_forward_equals_whole_forward(backend):
    model = make_model(SMALL)
    model.set_attention(backend)
    torch.testing.assert_close(
        run_in_chunks(model, cached=True),
        run_in_chunks(model, cached=False),
        rtol=1e-10,
        atol=1e-10,
    )


def test_a_copied_prefix_continues_like_the_original():
    model = make_model(SMALL)
    ids = random_ids(12)
    cache = KVCache(model.config, num_slots=2, num_places=16, dtype=torch.float64)
    model(ids[:8], pack_lengths([8], starts=[0], slots=[0]), cache=cache)
    cache.copy(0, 1, 8)
    rest = model(ids[8:], pack_lengths([4], starts=[8], slots=[1]), cache=cache)
    torch.testing.assert_close(rest, model(ids, pack_lengths([12]))[8:], rtol=1e-10, atol=1e-10)


def test_embeddings_in_place_of_ids_give_the_same_logits():
    model = make_model(SMALL)
    ids = random_ids(9)
    embeddings = model.model.embed_tokens(ids)
    assert torch.equal(model(embeddings, pack_lengths([9])), model(ids, pack_lengths([9])))


def test_head_is_computed_for_the_rows_wanted():
    model = make_model(SMALL)
    ids, packed = random_ids(12), pack_lengths([5, 7])
    some = model(ids, packed, rows=packed.last_rows)
    torch.testing.assert_close(some, model(ids, packed)[[4, 11]])


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_fault_49_attention_in_fp16_stays_finite_where_the_product_overflows(backend):
    model = make_model(SMALL, dtype=torch.float32)
    for block in model.model.layers:
        block.self_attn.qkv_proj.bias[:128] = 300.0  # |q| and |k| about 300: the product is 1.4e6
    expected = model(random_ids(20), pack_lengths([20]))
    model = model.half()
    model.set_attention(backend)
    logits = model(random_ids(20), pack_lengths([20]))
    assert logits.isfinite().all()
    assert relative(logits, expected) < 0.02


def test_half_precision_logits_come_in_fp32():
    model = make_model(SMALL, dtype=torch.bfloat16)
    assert model(random_ids(4), pack_lengths([4])).dtype == torch.float32


def test_a_model_built_on_meta_has_right_rotary_tables():
    model = make_model(SMALL)
    with torch.device("meta"):
        built = PhiForCausalLM(SMALL)
    built.load_state_dict(model.state_dict(), assign=True)
    ids, packed = random_ids(6), pack_lengths([6])
    assert torch.equal(built.eval()(ids, packed), model(ids, packed))


def test_fewer_layers_have_no_head_and_say_so():
    model = PhiForCausalLM(SMALL, layers=2).eval()
    with pytest.raises(UnsupportedError, match=r"loaded with layers=2"):
        model(random_ids(4), pack_lengths([4]))
    with pytest.raises(UnsupportedError, match="no head"):
        model.logits(torch.zeros(1, 64))


def test_more_tokens_than_the_context_are_an_error_with_both_counts():
    with pytest.raises(ContextLengthError, match="65 tokens exceed the context of 64"):
        make_model(SMALL)(random_ids(65), pack_lengths([65]))


def test_a_cache_without_slots_is_refused():
    cache = KVCache(SMALL, num_slots=1, num_places=8, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs a packing with slots"):
        make_model(SMALL)(random_ids(4), pack_lengths([4]), cache=cache)


def test_a_slot_too_short_is_refused():
    cache = KVCache(SMALL, num_slots=1, num_places=8, dtype=torch.float64)
    with pytest.raises(ContextLengthError, match="9 tokens exceed the 8 of a cache slot"):
        make_model(SMALL)(random_ids(9), pack_lengths([9], starts=[0], slots=[0]), cache=cache)


def test_an_unknown_backend_is_named():
    with pytest.raises(UnsupportedError, match="'fast'"):
        PhiForCausalLM(SMALL).set_attention("fast")


def test_fault_49_attention_maps_in_fp16_are_finite_and_right_where_the_product_overflows():
    model = make_model(SMALL, dtype=torch.float32)
    for block in model.model.layers:
        block.self_attn.qkv_proj.bias[:128] = 300.0
    ids, packed = random_ids(20), pack_lengths([20])
    maps = []
    for run in (model, model.half()):
        plan = plan_capture(packed, [Point("attn_probs", 1), Point("attn_scores", 1)])
        run.model(ids, packed, plan=plan)
        maps.append(plan.rows(0))
    exact, half = maps
    assert half["attn_probs.1"].isfinite().all()
    assert half["attn_scores.1"].max() > 65504  # what fp16 itself could not hold
    allowed = torch.ones(20, 20, dtype=torch.bool).tril()
    ours, theirs = half["attn_scores.1"][:, allowed], exact["attn_scores.1"][:, allowed]
    assert relative(ours, theirs) < 0.02


@pytest.mark.parametrize("shape", [(5,), (1, 1), (1, 5)])
def test_inputs_that_are_not_the_tokens_of_the_batch_are_refused(shape):
    model = make_model(SMALL)
    with pytest.raises(ValueError, match=r"a batch of 1 tokens takes ids \(N,\)"):
        model(torch.ones(shape, dtype=torch.int64), pack_lengths([1]))
    with pytest.raises(ValueError, match="a batch of 1 tokens"):
        model(torch.ones(5, SMALL.hidden_size, dtype=torch.float64), pack_lengths([1]))


def test_attention_dropout_is_refused_in_training_rather_than_ignored():
    model = make_model(dataclasses.replace(SMALL, attention_dropout=0.1))
    model(random_ids(4), pack_lengths([4]))
    with pytest.raises(UnsupportedError, match="attention dropout"):
        model.train()(random_ids(4), pack_lengths([4]))


def test_inference_mode_changes_no_result():
    model, ids = make_model(SMALL), random_ids(9)
    with torch.inference_mode():
        fast = model(ids, pack_lengths([4, 5]))
    torch.testing.assert_close(fast, model(ids, pack_lengths([4, 5])), rtol=0, atol=1e-12)
