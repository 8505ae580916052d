"""Rows that cannot be served, numbers that are none, and batches that must not matter."""

import numpy as np
import pytest
import torch
from plain_extraction import Plain, extract, make_phi, make_rows

from phiscope.packing import pack

STEM = "a stem of tokens that many begin with, "
TEXTS = (
    "the cat",
    "x",
    STEM + "the end",
    STEM + "another",
    STEM + "the end",
    "one<|endoftext|>two",
)
MANY = "resid_post.[:], z.1, attn_entropy.2, final_norm"


@pytest.fixture(scope="module")
def phi():
    return make_phi()


@pytest.fixture(scope="module")
def plain(phi):
    return Plain(phi, MANY)


def test_fault_55_bad_rows_are_told_by_index_and_the_others_are_extracted(phi):
    rows = make_rows(
        "sound",
        {"fault": "not valid UTF-8 at byte 3"},
        "x" * 65,
        [],
        [5, 320],
        [5, -1],
        "a",
        [1, 2],
        {"text": "sound, too"},
    )
    given = {"points": "resid_post.1", "pool": "mean", "dtype": "float32", "tokens": "chars:1:3"}
    extracted = extract(phi, rows, **given)
    assert [(entry["index"], entry["id"]) for entry in extracted.entries] == [
        (n, f"row {n}") for n in range(1, 8)
    ]
    for entry, message in zip(
        extracted.entries,
        [
            "not valid UTF-8 at byte 3",
            "65 tokens exceed the 64 that are read at once",
            "the prompt has no tokens",
            "token id 320 at place 1",
            "token id -1 at place 1",
            "no token fits 'chars:1:3'",
            "this row has token ids",
        ],
        strict=True,
    ):
        assert message in entry["error"]
    expected = extract(phi, [rows[0], rows[8]], **given)
    assert extracted.keys == expected.keys
    np.testing.assert_allclose(*(x.columns["resid_post.1.mean"] for x in (extracted, expected)))


@pytest.mark.parametrize("pool", [(), "mean"], ids=str)
def test_a_shard_of_bad_rows_alone_has_no_rows(phi, pool):
    extracted = extract(phi, make_rows({"fault": "a"}, []), points="resid_post.1", pool=pool)
    assert extracted.keys == extracted.forwards == []
    assert [len(values) for values in extracted.columns.values()] == [0]
    assert len(extracted.entries) == 2


@pytest.mark.parametrize("pool", [(), ("max", "last")], ids=["tokens", "texts"])
def test_faults_50_and_51_a_text_with_a_nan_is_a_bad_row_and_no_neighbour(pool):
    sick = make_phi()
    (bad,) = sick.tokenizer.encode("Z")
    texts = ["a", STEM + "one", "bZd", STEM + "Z", STEM + "two", "Z" + STEM + "x", "Z" + STEM + "y"]
    rows = make_rows(*texts)
    given = {"points": "embeddings, resid_post.1, attn_entropy.1", "pool": pool}
    healthy = extract(sick, rows, **given)
    sick.model.model.embed_tokens.weight[bad] = float("nan")
    extracted = extract(sick, rows, **given)
    assert [entry["index"] for entry in extracted.entries] == [2, 3, 5, 6]
    first = next(iter(extracted.columns))
    assert {entry["error"] for entry in extracted.entries} == {f"{first} has a NaN or an infinity"}
    sound = [n for n, (name, *_) in enumerate(healthy.keys) if name[-1] in "014"]
    assert extracted.keys == [healthy.keys[n] for n in sound]
    for name, values in extracted.columns.items():
        assert (values == healthy.columns[name][sound]).all()


def test_fault_50_weights_with_a_nan_leave_no_row(phi):
    sick = make_phi()
    sick.model.model.layers[1].mlp.fc2.bias[3] = float("nan")
    rows = make_rows(*TEXTS)
    assert extract(sick, rows, points="resid_post.0", pool="mean").entries == []
    extracted = extract(sick, rows, points="resid_post.0, resid_post.1", pool="mean")
    assert [entry["index"] for entry in extracted.entries] == list(range(len(rows)))
    assert extracted.keys == []


def test_fault_50_a_nan_among_the_logits_is_a_bad_row():
    sick = make_phi()
    sick.model.lm_head.bias[7] = float("inf")
    for kept in ({"top_k": 2}, {"token_ids": [3]}):
        extracted = extract(sick, make_rows("abc"), points="logits", pool="last", **kept)
        assert "has a NaN or an infinity" in extracted.entries[0]["error"]


@pytest.mark.parametrize("pool", [(), "max"], ids=str)
def test_fault_51_values_beyond_float16_are_clamped_counted_and_told(pool):
    phi = make_phi()
    (big,) = phi.tokenizer.encode("B")
    phi.model.model.embed_tokens.weight[big] = 1.0
    phi.model.model.embed_tokens.weight[big, :3] = torch.tensor([1e5, -1e5, 65504.0]).double()
    rows = make_rows("aBa", STEM + "B", "a", STEM + "c")
    name = "embeddings.max" if pool else "embeddings"
    extracted = extract(phi, rows, points="embeddings", pool=pool)
    values = extracted.columns[name]
    assert np.isfinite(values).all()
    assert (values[:, 0] == 65504).sum() == 2
    clamped = 1 if pool else 2  # the smallest does not show in a maximum
    assert extracted.clamped == {name: 2 * clamped}
    warning = f"{clamped} values of {name} beyond float16 were clamped"
    assert [(entry["index"], entry["warning"]) for entry in extracted.entries] == [
        (0, warning),
        (1, warning),
    ]
    whole = extract(phi, rows, points="embeddings", pool=pool, dtype="float32")
    assert whole.clamped == {name: 0}
    assert whole.columns[name].max() == 1e5
    assert whole.entries == []


def test_of_a_bad_row_nothing_else_is_counted():
    phi = make_phi()
    big, bad = (phi.tokenizer.encode(letter)[0] for letter in "BZ")
    phi.model.model.embed_tokens.weight[big] = 1e5
    phi.model.model.embed_tokens.weight[bad, :3] = float("nan")
    for pool in ((), "max"):
        extracted = extract(phi, make_rows("abc", "BZ"), points="embeddings", pool=pool)
        assert [list(entry) for entry in extracted.entries] == [["index", "id", "error"]]
        assert set(extracted.clamped.values()) == {0}
        assert extracted.num_tokens == 3


def test_fault_51_a_mean_of_large_states_is_not_clamped_before_it_is_one():
    phi = make_phi()
    high, low = (phi.tokenizer.encode(letter)[0] for letter in "HL")
    phi.model.model.embed_tokens.weight[high] = 1e5
    phi.model.model.embed_tokens.weight[low] = -1e5 + 4
    extracted = extract(phi, make_rows("HL"), points="embeddings", pool="mean")
    assert (extracted.columns["embeddings.mean"] == 2).all()
    assert extracted.entries == []


@pytest.mark.parametrize(
    ("num_threads", "mix"),
    [
        (1, {}),
        (2, {}),
        (1, {"token_budget": 1}),
        (1, {"token_budget": 40}),
        (1, {"shard_size": 1}),
        (1, {"share_prefixes": False}),
    ],
    ids=str,
)
def test_fault_52_states_do_not_depend_on_the_batch(plain, num_threads, mix):
    phi = make_phi()
    phi.model.float()
    torch.set_num_threads(num_threads)
    given = {"pool": ("mean", "last")}
    for rows in (make_rows(*TEXTS, "y" * 60), make_rows(*TEXTS[2::-1])):
        extracted = extract(phi, rows, points=MANY, dtype="float32", **given, **mix)
        for name, values in extracted.columns.items():
            expected = np.concatenate([plain.columns(row, **given)[name] for row in rows])
            np.testing.assert_allclose(values, expected, rtol=1e-4, atol=2e-5, err_msg=name)


def test_fault_52_a_text_of_one_token_alone_is_exact():
    phi = make_phi()
    phi.model.float()
    expected = phi.model.model(*pack([phi.tokenizer.encode("x")])).numpy()
    for pool in ((), "mean", "weighted_mean", "last"):
        extracted = extract(phi, make_rows("x"), points="final_norm", pool=pool, dtype="float32")
        assert all((values == expected).all() for values in extracted.columns.values())
