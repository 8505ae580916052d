"""The CUDA kernel behind `flash` does not run on a CPU: here its place is taken by its definition,
written from torch's documentation of `varlen_attn`, so that what we hand it is tested."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phiscope import attention
from phiscope.attention import (
    BACKENDS,
    DECODE_BACKENDS,
    attend_with_maps,
    eager,
    find_paging_obstacle,
    select_backend,
    select_decode_backend,
)
from phiscope.errors import UnsupportedError
from phiscope.packing import make_decodes, pack_lengths

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@dataclasses.dataclass(frozen=True)
class Case:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    packed: object


def make_case(lengths, starts=None, slots=None, heads=4, kv_heads=2, dim=8):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    packed = pack_lengths(lengths, starts=starts, slots=slots)
    shape = (sum(lengths),) if slots is None else (max(slots) + 1, 40)
    return Case(
        normal(sum(lengths), heads, dim),
        normal(*shape, kv_heads, dim),
        normal(*shape, kv_heads, dim),
        packed,
    )


CASES = {
    "alone": make_case([5]),
    "even": make_case([6, 6, 6]),
    "ragged": make_case([1, 9, 4]),
    "decode": make_case([1, 1, 1], [7, 0, 30], [2, 0, 1]),
    "mixed": make_case([4, 1, 6], [3, 12, 0], [0, 3, 1]),
    "not grouped": make_case([3, 5], kv_heads=4),
    "one key head": make_case([3, 5], [2, 2], [0, 1], kv_heads=1),
}


def run(name, case):
    return BACKENDS[name](case.q, case.k, case.v, case.packed)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("backend", ["sdpa", "native", "flex"])
def test_backend_equals_eager(backend, case):
    torch.testing.assert_close(run(backend, case), run("eager", case), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("takes_gqa", [False, True])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_flash_hands_its_kernel_what_eager_computes(monkeypatch, takes_gqa, case):
    kernel = (varlen_definition, {"window_size": (-1, 0)}, takes_gqa)
    monkeypatch.setattr(attention, "_varlen", lambda: kernel)
    torch.testing.assert_close(run("flash", case), run("eager", case), rtol=1e-12, atol=1e-12)


def varlen_definition(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size, enable_gqa=False):
    assert window_size == (-1, 0)
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == cu_seq_q.diff().max()
    assert max_k == cu_seq_k.diff().max()
    assert enable_gqa or k.shape[1] == q.shape[1]
    outputs = []
    for i in range(len(cu_seq_q) - 1):
        rows = slice(cu_seq_q[i], cu_seq_q[i + 1]), slice(cu_seq_k[i], cu_seq_k[i + 1])
        one, keys, values = q[rows[0]], k[rows[1]], v[rows[1]]
        hidden = torch.ones(len(one), len(keys), dtype=torch.bool).triu(len(keys) - len(one) + 1)
        bias = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill(hidden, float("-inf"))
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                *[x.transpose(0, 1)[None] for x in (one, keys, values)],
                attn_mask=bias,
                enable_gqa=enable_gqa,
            )[0].transpose(0, 1)
        )
    return torch.cat(outputs)


def make_decode_case(kv_heads):
    """Sequences of 8, 1 and 31 tokens in slots 2, 0 and 1; what they have not written is NaN."""
    case = make_case([1, 1, 1], [7, 0, 30], [2, 0, 1], kv_heads=kv_heads)
    for slot, length in ((2, 8), (0, 1), (1, 31)):
        case.k[slot, length:] = case.v[slot, length:] = torch.nan
    decodes = make_decodes(torch.tensor([2, 0, 1]), case.packed.positions, 40)
    return case, decodes


def paged_definition(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, **options):
    tables, lengths = options["block_table"], options["seqused_k"]
    assert tables.dtype == lengths.dtype == cu_seq_q.dtype == torch.int32
    assert cu_seq_q.tolist() == list(range(len(q) + 1))
    assert max_q == 1
    assert lengths.max() <= max_k <= k.shape[1]
    assert options["enable_gqa"] == (k.shape[2] != q.shape[1])
    slots = [table[0] for table in tables.tolist()]
    starts = [length - 1 for length in lengths.tolist()]
    return eager(q, k, v, pack_lengths([1] * len(q), starts=starts, slots=slots))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("name", ["masked", "paged"])
def test_decode_attention_equals_eager_and_reads_no_further(monkeypatch, name, kv_heads):
    monkeypatch.setattr(attention, "_paged", lambda: paged_definition)
    case, decodes = make_decode_case(kv_heads)
    found = DECODE_BACKENDS[name](case.q, case.k, case.v, decodes)
    torch.testing.assert_close(found, run("eager", case), rtol=1e-12, atol=1e-12)


def test_pages_need_a_torch_that_knows_them(monkeypatch):
    from torch.nn.attention import varlen

    def older(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1)):
        """As torch 2.11 has it."""

    attention._paged.cache_clear()
    monkeypatch.setattr(varlen, "varlen_attn", older)
    assert "varlen_attn has no block_table" in find_paging_obstacle()
    with pytest.raises(UnsupportedError, match="no decode attention 'fused'"):
        select_decode_backend("fused")


def test_torch_has_the_variable_length_kernel_that_flash_calls():
    kernel, options, _ = attention._varlen()
    assert callable(kernel)
    assert options in ({"window_size": (-1, 0)}, {"is_causal": True})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from(["sdpa", "eager"]))
def test_a_sequence_does_not_see_its_neighbours(lengths, backend):
    case = make_case(lengths)
    whole = run(backend, case)
    for span, length in zip(case.packed.spans(), lengths, strict=True):
        alone = BACKENDS[backend](case.q[span], case.k[span], case.v[span], pack_lengths([length]))
        torch.testing.assert_close(whole[span], alone, rtol=1e-12, atol=1e-12)


def test_maps_are_rows_of_probabilities_that_look_back_only():
    maps = {}

    def watch(name, sequence, x):
        maps[name, sequence] = x
        return x

    case = CASES["mixed"]
    output = attend_with_maps(case.q, case.k, case.v, case.packed, watch)
    assert torch.equal(output, run("eager", case))
    probs = maps["attn_probs", 0]
    assert probs.shape == (4, 4, 7)
    torch.testing.assert_close(probs.sum(-1), torch.ones(4, 4, dtype=torch.float64))
    assert (probs[:, 0, 4:] == 0).all()
    assert (maps["attn_scores", 0][:, 0, 4:] == float("-inf")).all()


def test_a_changed_map_changes_the_output():
    case = CASES["ragged"]

    def silence(name, sequence, x):
        return torch.zeros_like(x) if name == "attn_probs" and sequence == 1 else x

    output = attend_with_maps(case.q, case.k, case.v, case.packed, silence)
    assert (output[1:10] == 0).all()
    assert torch.equal(output[10:], eager(case.q, case.k, case.v, case.packed)[10:])


def test_an_unknown_backend_is_named_with_the_choice():
    with pytest.raises(UnsupportedError, match=r"'fused'; choose from \['eager'"):
        select_backend("fused")


def test_flex_makes_one_mask_for_all_layers(monkeypatch):
    from torch.nn.attention import flex_attention

    made = []
    original = flex_attention.create_block_mask
    monkeypatch.setattr(
        flex_attention,
        "create_block_mask",
        lambda *args, **kwargs: made.append(args) or original(*args, **kwargs),
    )
    case, other = make_case([3, 4]), make_case([4, 3])
    for _ in range(3):
        run("flex", case)
    torch.testing.assert_close(run("flex", other), run("eager", other), rtol=1e-12, atol=1e-12)
    assert len(made) == 2
