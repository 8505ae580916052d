"""What an extraction gives equals the plain way: each text alone, pooled with numpy."""

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_extraction import (
    ALL_POINTS,
    CONFIG,
    LOOKING_BACK,
    STEM,
    TEXTS,
    Plain,
    assert_equal,
    extract,
    make_phi,
    make_rows,
    run_shard,
)

from phiscope.activations.points import POINTS, resolve_points
from phiscope.api import Phi
from phiscope.cache import PrefixCache
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.options import make_options
from phiscope.model import PhiForCausalLM

EVERY_POOL = ("last", "mean", "first", "weighted_mean", "max")


@pytest.fixture(scope="module")
def phi():
    return make_phi()


@pytest.fixture(scope="module")
def plain(phi):
    return Plain(phi, ALL_POINTS)


@pytest.fixture(scope="module")
def plains():
    """Those that examples made before, by their points."""
    return {}


def test_every_point_is_among_those_compared():
    compared = {point.name for point in resolve_points(ALL_POINTS, 3)}
    assert compared == {k.name for k in POINTS.values() if k.shape not in ("map", "vocab")}


@pytest.mark.parametrize("points", [LOOKING_BACK, ALL_POINTS], ids=["shared", "whole"])
@pytest.mark.parametrize("pool", [(), *EVERY_POOL, EVERY_POOL], ids=str)
def test_extracted_equals_captured_alone_at_every_point(phi, plain, points, pool):
    rows = make_rows(*TEXTS, [7, 8, 9], [300, 2])
    extracted = extract(phi, rows, points=points, pool=pool, dtype="float32")
    kept = Plain(phi, points) if points != ALL_POINTS else plain
    assert_equal(extracted, kept, rows, pool=pool)
    assert list(extracted.columns) == list(kept.columns(rows[0], pool=pool))


@pytest.mark.parametrize("pool", [(), "mean", "max"], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_states_are_rounded_once_to_the_kept_dtype(phi, dtype, pool):
    points = "resid_post.2, z.0"
    rows = make_rows(*TEXTS)
    extracted = extract(phi, rows, points=points, pool=pool, dtype=dtype)
    assert_equal(extracted, Plain(phi, points), rows, pool=pool, dtype=dtype)


CONTENTS = st.one_of(
    st.builds(
        "{}{}".format,
        st.sampled_from(["", STEM, STEM[:12], STEM + "then ", "\u00e9\U0001f642"]),
        st.text("ab \u00e9\U0001f642\n", min_size=1, max_size=6),
    ),
    st.lists(st.integers(0, 319), min_size=1, max_size=30),
)
WINDOWS = st.integers(4, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(n // 3, n)))


@settings(max_examples=25, deadline=None)
@given(
    contents=st.lists(CONTENTS, min_size=1, max_size=7),
    copies=st.lists(st.integers(0, 6), max_size=3),
    tokens=st.sampled_from(["all", "first:1", "first:5", "last:1", "last:3"]),
    pool=st.sampled_from([(), "mean", "last", EVERY_POOL]),
    window=WINDOWS | st.none(),
    token_budget=st.sampled_from([1, 20, 60, 1000]),
    shard_size=st.integers(1, 8),
    is_shared=st.booleans(),
    received=st.booleans(),
)
def test_any_mix_of_texts_equals_each_alone(
    phi,
    plains,
    contents,
    copies,
    tokens,
    pool,
    window,
    token_budget,
    shard_size,
    is_shared,
    received,
):
    rows = make_rows(*contents, *(contents[n % len(contents)] for n in copies))
    length, stride = window or (None, None)
    points = "resid_post.[0,2], attn_entropy.1, embeddings" + ", attn_received.0" * received
    extracted = extract(
        phi,
        rows,
        points=points,
        pool=pool,
        tokens=tokens,
        overflow="window" if window else "error",
        window=length,
        stride=stride,
        dtype="float32",
        token_budget=token_budget,
        shard_size=shard_size,
        share_prefixes=is_shared,
    )
    plain = plains.setdefault(points, Plain(phi, points))
    assert_equal(
        extracted, plain, rows, pool=pool, tokens=tokens, window=length or 64, stride=stride
    )


@pytest.mark.parametrize("pool", [(), EVERY_POOL], ids=["tokens", "texts"])
def test_windows_give_every_token_once_as_computed_directly(phi, pool):
    """Window k holds the tokens from k * stride; a token is of the first window that holds it."""
    points = "resid_post.2, attn_received.1"
    rows = make_rows("the window of a long text " * 5, "short", list(range(200)))
    given = {"pool": pool, "window": 16, "stride": 6}
    extracted = extract(phi, rows, points=points, overflow="window", dtype="float32", **given)
    assert_equal(extracted, Plain(phi, points), rows, **given)
    if not pool:
        ids = phi.tokenizer.encode(rows[0].text)
        assert extracted.keys[: len(ids)] == [("row 0", p, t) for p, t in enumerate(ids)]


def test_a_window_is_the_context_and_a_stride_half_of_it_unless_given(phi):
    rows = make_rows([n % 50 for n in range(150)])
    extracted = extract(phi, rows, points="resid_post.2", overflow="window", dtype="float32")
    assert_equal(extracted, Plain(phi, "resid_post.2"), rows, window=64, stride=32)
    assert extracted.forwards == [(4, 64 + 64 + 64 + 150 - 96)]


def test_a_cut_text_is_that_of_its_first_tokens_and_a_warning(phi):
    rows = make_rows("the first words and then more", "short")
    given = {"points": "resid_post.1", "dtype": "float32"}
    extracted = extract(phi, rows, overflow="truncate", window=9, pool="mean", **given)
    plain = Plain(phi, "resid_post.1")
    expected = [plain.columns(row, pool="mean", window=9, cut=True) for row in rows]
    for name, found in extracted.columns.items():
        whole = np.concatenate([columns[name] for columns in expected])
        np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)
    assert [num_tokens for _, num_tokens, _ in extracted.keys] == [9, 5]
    (entry,) = extracted.entries
    assert entry["index"] == 0
    assert entry["warning"].startswith("of ")
    assert entry["warning"].endswith("tokens the first 9 were read")


@pytest.mark.parametrize(
    "tokens", ["chars:3:9", "text:the", "token: the", "prompt", "completion", "span"]
)
@pytest.mark.parametrize("pool", [(), "weighted_mean"], ids=str)
def test_only_chosen_tokens_count_and_all_before_them_are_seen(phi, plain, tokens, pool):
    rows = make_rows(
        {"text": "in the\U0001f642 the end the", "prompt_chars": 8, "span": (6, 7)},
        {"text": STEM + "in the end", "prompt_chars": 5, "span": (1, 44)},
        {"text": STEM + "in the middle", "prompt_chars": 30, "span": (20, 45)},
    )
    given = {"pool": pool, "tokens": tokens}
    for points in (
        ALL_POINTS,
        "resid_post.2, attn_entropy.0",
    ):  # the second lets prefixes be shared
        extracted = extract(phi, rows, points=points, dtype="float32", **given)
        wanted = plain if points == ALL_POINTS else Plain(phi, points)
        assert_equal(extracted, wanted, rows, **given)


def test_tokens_after_the_last_that_counts_are_not_run(phi):
    rows = make_rows("a long text", "another", [3])
    extracted = extract(phi, rows, points="resid_post.1", tokens="first:2", pool="mean")
    assert extracted.forwards == [(3, 2 + 2 + 1)]
    assert [num_tokens for _, num_tokens, _ in extracted.keys] == [11, 5, 1]


def test_keys_receive_from_queries_that_do_not_count(phi):
    rows, points = make_rows("received from all", STEM, STEM + "x"), "attn_received.[0,1]"
    given = {"points": points, "dtype": "float32"}
    chosen = extract(phi, rows, tokens="first:2", **given)
    whole = extract(phi, rows, **given)
    places = [n for n, (_, place, _) in enumerate(whole.keys) if place < 2]
    for name, values in chosen.columns.items():
        np.testing.assert_allclose(values, whole.columns[name][places], rtol=1e-6)


def test_rows_of_tokens_say_whose_they_are_and_where(phi):
    rows = make_rows("abcd", [5, 6, 7], {"fault": "bad"}, "xy")
    extracted = extract(phi, rows, points="embeddings", tokens="last:2")
    assert extracted.keys == [
        *(("row 0", 2, 66), ("row 0", 3, 67)),
        *(("row 1", 1, 6), ("row 1", 2, 7), ("row 3", 0, 87), ("row 3", 1, 88)),
    ]


def test_rows_of_texts_say_how_long_they_are_and_what_they_were_made_of(phi):
    rows = make_rows("abcd", [5, 6, 7])
    extracted = extract(phi, rows, points="embeddings", tokens="last:2", pool="mean")
    assert extracted.keys == [("row 0", 4, rows[0].sha256), ("row 1", 3, rows[1].sha256)]


def test_shared_prefixes_are_computed_once(phi):
    rows = make_rows(*([9] * 30 + [n] * 3 for n in range(6)), [1, 2])
    for points, num_tokens in (("resid_post.1", 30 + 6 * 3 + 2), ("attn_received.1", 6 * 33 + 2)):
        extracted = extract(phi, rows, points=points, pool="mean")
        assert extracted.num_tokens_run == num_tokens
    apart = extract(phi, rows, points="resid_post.1", share_prefixes=False)
    assert apart.num_tokens_run == 6 * 33 + 2


def test_shared_prefixes_serve_duplicates_with_one_run(phi):
    extracted = extract(phi, make_rows(*[STEM] * 5), points="resid_post.1")
    num_tokens = len(phi.tokenizer.encode(STEM))
    assert extracted.forwards == [(1, num_tokens)]
    (states,) = extracted.columns.values()
    assert all((part == states[:num_tokens]).all() for part in np.split(states, 5))


@pytest.mark.parametrize("pool", [(), "last"], ids=str)
def test_shared_prefixes_may_have_rows_that_nobody_wants(phi, plain, pool):
    rows = make_rows(STEM + "one", STEM + "two")
    given = {"pool": pool, "tokens": "last:2"}
    extracted = extract(phi, rows, points=LOOKING_BACK, dtype="float32", **given)
    assert_equal(extracted, Plain(phi, LOOKING_BACK), rows, **given)


def test_shared_prefixes_are_in_memory_one_wave_after_the_other(phi):
    rows = make_rows(*([n] * 20 + [k] for n in range(5) for k in (50, 51)))
    options = make_options(points="resid_post.1", token_budget=45)
    extractor, alive = Extractor(phi.model, phi.tokenizer, options), []

    def count(*_):
        caches = [x for x in gc.get_objects() if type(x) is PrefixCache]
        alive.append([cache.packed.num_tokens for cache in caches])

    shard = extractor.read(rows, 0)
    extractor.run(shard, Ignore(), count)
    assert set(map(tuple, alive)) == {(40,), (20,)}


def test_shared_prefixes_do_not_change_what_is_recorded_of_the_rows(phi):
    rows = make_rows(STEM + "one", STEM + "two", "x")
    shared = extract(phi, rows, points="resid_post.1")
    apart = extract(phi, rows, points="resid_post.1", share_prefixes=False)
    assert shared.keys == apart.keys


class Ignore:
    def put(self, column, first_row, values):
        """Nothing is kept."""


def count_rows(model):
    """The rows that each block and the head have seen, as forwards go on."""
    seen = {}
    modules = {f"block {n}": block for n, block in enumerate(model.model.layers)}
    for name, module in {**modules, "head": model.lm_head}.items():
        rows = seen.setdefault(name, [])
        module.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(len(args[0])))
    return seen


@pytest.mark.parametrize(
    ("points", "blocks"), [("embeddings", 0), ("resid_pre.1, z.0", 1), ("resid_post.1", 2)]
)
def test_blocks_above_the_last_point_are_never_called(points, blocks):
    phi = make_phi()
    seen = count_rows(phi.model)
    extract(phi, make_rows(STEM + "one", STEM + "two", "x" * 70), points=points, overflow="window")
    assert [name for name, rows in seen.items() if rows] == [f"block {n}" for n in range(blocks)]


def test_the_head_sees_the_kept_rows_alone_and_a_few_at_a_time():
    phi = make_phi(max_position_embeddings=800)
    seen = count_rows(phi.model)
    rows = make_rows([1] * 700, [2] * 30, [3])
    extract(phi, rows, points="final_norm, resid_post.1")
    assert seen["head"] == []
    extract(phi, rows, points="logits", top_k=2, pool=("last", "first"))
    assert seen["head"] == [3, 3]
    extract(phi, rows, points="logits", top_k=2, tokens="last:300")
    assert seen["head"][2:] == [256, 331 - 256]


@pytest.mark.parametrize("pool", [(), ("last", "first")], ids=["tokens", "texts"])
@pytest.mark.parametrize(
    "kept", [{"top_k": 4}, {"top_k": 999}, {"token_ids": [9, 319, 9]}], ids=str
)
def test_logits_are_the_largest_or_the_chosen_of_all(phi, pool, kept):
    rows = make_rows(*TEXTS)
    given = {"points": "logits, final_norm", "pool": pool, "dtype": "float32"}
    columns = extract(phi, rows, **given, **kept).columns
    plain = Plain(phi, "logits, final_norm")
    for name in [f"logits.{p}" for p in pool] or ["logits"]:
        logits = np.concatenate([plain.columns(row, pool=pool)[name] for row in rows])
        close = {"rtol": 1e-5, "atol": 1e-6}
        expected = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(columns[f"{name}.logsumexp"], expected, **close)
        if "token_ids" in kept:
            chosen = logits[:, kept["token_ids"]]
            np.testing.assert_allclose(columns[f"{name}.values"], chosen, **close)
            continue
        order = np.argsort(-logits, axis=1)[:, : kept["top_k"]]
        top = np.take_along_axis(logits, order, axis=1)
        assert (columns[f"{name}.top_ids"] == order).all()
        np.testing.assert_allclose(columns[f"{name}.top_values"], top, **close)
    final = extract(phi, rows, **{**given, "points": "final_norm"})
    assert_equal(final, Plain(phi, "final_norm"), rows, pool=pool)


@pytest.mark.parametrize("pool", [(), EVERY_POOL], ids=["tokens", "texts"])
def test_the_same_shard_twice_has_the_same_bytes(phi, pool):
    rows = make_rows(*TEXTS, "x" * 100)
    given = {"points": ALL_POINTS, "pool": pool, "overflow": "window"}
    assert extract(phi, rows, **given) == extract(phi, rows, **given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 65}, "window 65 exceeds the model's context of 64"),
        ({"overflow": "window", "stride": 65}, "stride 65 would skip tokens: the window is 64"),
    ],
)
def test_windows_that_the_model_cannot_read_are_refused(phi, settings, message):
    with pytest.raises(ValueError, match=message):
        Extractor(phi.model, phi.tokenizer, make_options(points="resid_post.1", **settings))


def test_a_model_of_some_layers_gives_what_the_whole_one_gives(phi):
    part = PhiForCausalLM(CONFIG, layers=2).double().eval().requires_grad_(False)
    part.load_state_dict(phi.model.state_dict(), strict=False)
    rows = make_rows(*TEXTS)
    given = {"points": "resid_post.1, attn_entropy.0", "pool": EVERY_POOL}
    loaded = Phi(part, phi.tokenizer, phi.mode)
    assert extract(loaded, rows, **given) == extract(phi, rows, **given)
    with pytest.raises(ValueError, match="above the 2 blocks that were loaded"):
        extract(loaded, rows, points="resid_post.2")


def test_a_shard_is_a_power_of_two_of_rows_and_fewer_where_states_are_large(phi):
    def size(**settings):
        return Extractor(phi.model, phi.tokenizer, make_options(**settings)).shard_size

    wide = "logits, resid_post.[:]"
    assert size(points="resid_post.1") == size(points=wide, top_k=320, pool="last") == 512
    assert size(points=wide, top_k=320) == 256
    assert size(points=wide, top_k=320, shard_size=7) == 7


def test_a_plan_is_what_is_run(phi):
    rows = make_rows(*TEXTS)
    options = make_options(points="resid_post.1", token_budget=30)
    extractor = Extractor(phi.model, phi.tokenizer, options)
    planned = extractor.plan(extractor.read(rows, 0))
    run = run_shard(extractor, rows)
    assert run.forwards == [(len(batch), sum(len(p.ids) for p in batch)) for batch in planned]
