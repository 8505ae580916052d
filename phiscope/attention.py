"""Causal attention over packed sequences: one signature, several backends.

A backend takes q (N, heads, head_dim), keys and values, and the packing, and returns (N, heads,
head_dim). Keys and values are flat (K, kv_heads, head_dim), `packed.key_lengths[i]` for sequence i
end to end, which without a prefix is N; in cache slots they are the layer's planes (slots, places,
kv_heads, head_dim), of which sequence i uses the first places of slot `packed.slots[i]`. `eager` is
the definition; the others are tested equal to it. q times k overflows fp16 in Phi-2, so products
are taken in fp32.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phiscope.errors import UnsupportedError
from phiscope.kernels import build, calls
from phiscope.packing import Decodes, Packed

Backend = Callable[[Tensor, Tensor, Tensor, Packed], Tensor]
DecodeBackend = Callable[[Tensor, Tensor, Tensor, Decodes], Tensor]
Watch = Callable[[str, int, Tensor], Tensor]
"""Given "attn_scores" or "attn_probs", a sequence and its map, returns the map to go on with."""


def eager(q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
    """The definition: softmax(q k^T / sqrt(head_dim)) v, scores and softmax in fp32 at least."""
    return attend_with_maps(q, k, v, packed, lambda name, sequence, x: x)


def attend_with_maps(q: Tensor, k: Tensor, v: Tensor, packed: Packed, watch: Watch) -> Tensor:
    """`eager`, showing each sequence's scores and probabilities (heads, T, K) to `watch`."""
    outputs = []
    for sequence, (rows, keys, values) in enumerate(segments(q, k, v, packed)):
        scores = watch("attn_scores", sequence, _masked_scores(rows, keys))
        probs = watch("attn_probs", sequence, scores.softmax(dim=-1))
        outputs.append(_weigh(probs, values).to(q.dtype))
    return torch.cat(outputs)


def sdpa(q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
    """torch's fused kernel: one call for equally long new sequences, else one for each."""
    if packed.is_even:
        even = [x.view(packed.num_sequences, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)]
        return _fused(*even, mask=None, is_causal=True).transpose(1, 2).flatten(0, 1)
    outputs = []
    for rows, keys, values in segments(q, k, v, packed):
        one = [x.transpose(0, 1)[None] for x in (rows, keys, values)]  # (1, heads, T or K, dim)
        mask, is_causal = _mask_for_fused(len(rows), len(keys), q.device)
        outputs.append(_fused(*one, mask=mask, is_causal=is_causal)[0].transpose(0, 1))
    return torch.cat(outputs)


def native(q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
    """A kernel of ours for CPUs: one call for the whole batch; `sdpa` where it cannot be built."""
    is_served = q.device.type == "cpu" and calls.serves_attention(q.dtype)
    if not is_served or torch.is_grad_enabled() or build.find_obstacle() is not None:
        return sdpa(q, k, v, packed)
    places = None if packed.slots is None else k.shape[1]
    sequences, num_keys = list_sequences(packed, places), sum(packed.key_lengths)
    return calls.attend(q, k.contiguous(), v.contiguous(), sequences, num_keys=num_keys)


def flash(q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
    """FlashAttention over variable lengths (CUDA, fp16 or bf16): one call for the whole batch."""
    keys, values = _gather(k, v, packed)
    varlen_attn, options, takes_gqa = _varlen()
    if takes_gqa:
        options = {**options, "enable_gqa": keys.shape[1] != q.shape[1]}
    else:
        keys, values = for_each_head(keys, q), for_each_head(values, q)
    output: Tensor = varlen_attn(
        q.contiguous(),
        keys.contiguous(),
        values.contiguous(),
        packed.cu_seqlens,
        packed.cu_seqlens_k,
        max(packed.lengths),
        max(packed.key_lengths),
        **options,
    )
    return output


def flex(q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
    """FlexAttention with a document mask: one call for the whole batch, compiled on CUDA."""
    keys, values = _gather(k, v, packed)
    one = [x.transpose(0, 1)[None] for x in (q, keys, values)]
    gqa = keys.shape[1] != q.shape[1]
    kernel = _flex_kernel(q.is_cuda)
    output: Tensor = kernel(*one, block_mask=_block_mask(packed), enable_gqa=gqa)
    return output[0].transpose(0, 1)


BACKENDS: dict[str, Backend] = {
    "eager": eager,
    "sdpa": sdpa,
    "native": native,
    "flash": flash,
    "flex": flex,
}


def select_backend(name: str) -> Backend:
    """The backend of that name; `UnsupportedError` if there is none."""
    if name not in BACKENDS:
        raise UnsupportedError(f"no attention backend {name!r}; choose from {sorted(BACKENDS)}")
    return BACKENDS[name]


def decode_masked(q: Tensor, k: Tensor, v: Tensor, packed: Decodes) -> Tensor:
    """torch's fused kernel on copies of the slots, with a mask made on the device."""
    places = torch.arange(packed.num_places, device=q.device)
    is_seen = places <= packed.positions[:, None]  # (S, places)
    unseen = ~is_seen[:, :, None, None]  # what was never written may be no number
    keys, values = (
        x[:, : packed.num_places].index_select(0, packed.slot_ids).masked_fill_(unseen, 0)
        for x in (k, v)
    )
    one = [x.transpose(1, 2) for x in (q[:, None], keys, values)]  # (S, heads, 1 or places, dim)
    return _fused(*one, mask=is_seen[:, None, None], is_causal=False)[:, :, 0]


def decode_paged(q: Tensor, k: Tensor, v: Tensor, packed: Decodes) -> Tensor:
    """FlashAttention on the slots as they lie, each of them a page (CUDA, fp16 or bf16)."""
    varlen_attn = _paged()
    count = packed.num_sequences
    output: Tensor = varlen_attn(
        q.contiguous(),
        k,
        v,
        torch.arange(count + 1, dtype=torch.int32, device=q.device),
        torch.arange(count + 1, dtype=torch.int32, device=q.device) * packed.num_places,
        1,
        packed.num_places,
        enable_gqa=k.shape[-2] != q.shape[1],
        seqused_k=(packed.positions + 1).int(),
        block_table=packed.slot_ids.int()[:, None],
    )
    return output


def decode_triton(q: Tensor, k: Tensor, v: Tensor, packed: Decodes) -> Tensor:
    """A kernel of ours on the slots as they lie, split over their places."""
    from phiscope.kernels.triton_attention import attend_to_slots

    return attend_to_slots(q, k, v, packed.slot_ids, packed.positions, packed.num_places)


DECODE_BACKENDS: dict[str, DecodeBackend] = {
    "masked": decode_masked,
    "paged": decode_paged,
    "triton": decode_triton,
}
"""Attention of single new tokens to slots (slots, places, kv_heads, head_dim) on the device."""


def select_decode_backend(name: str) -> DecodeBackend:
    """The decode backend of that name; `UnsupportedError` if there is none."""
    if name not in DECODE_BACKENDS:
        known = sorted(DECODE_BACKENDS)
        raise UnsupportedError(f"no decode attention {name!r}; choose from {known}")
    return DECODE_BACKENDS[name]


def find_paging_obstacle() -> str | None:
    """Why `decode_paged` cannot run with this torch; None if it can."""
    try:
        _paged()
    except (ImportError, UnsupportedError) as error:
        return str(error)
    return None


def segments(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each sequence's queries (T, heads, dim), keys and values (K, kv_heads, dim), as views."""
    if packed.slots is None:
        new, known = list(packed.lengths), list(packed.key_lengths)
        split = torch.split
        yield from zip(split(q, new), split(k, known), split(v, known), strict=True)
        return
    places = zip(packed.spans(), packed.slots, packed.key_lengths, strict=True)
    for span, slot, length in places:
        yield q[span], k[slot, :length], v[slot, :length]


def _masked_scores(q: Tensor, k: Tensor) -> Tensor:
    q, k = upcast(q), for_each_head(upcast(k), q)
    scores = q.transpose(0, 1) @ k.permute(1, 2, 0) / math.sqrt(q.shape[-1])  # (heads, T, K)
    return scores.masked_fill(~_may_see(len(q), len(k), q.device), float("-inf"))


def _weigh(probs: Tensor, v: Tensor) -> Tensor:
    values = v.to(probs.dtype).repeat_interleave(probs.shape[0] // v.shape[1], dim=1)
    return (probs @ values.transpose(0, 1)).transpose(0, 1)


def _may_see(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """(T, K) bool: the queries are the last T of K tokens; each sees itself and those before."""
    everything = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return everything.tril(num_keys - num_queries)


def _mask_for_fused(T: int, K: int, device: torch.device) -> tuple[Tensor | None, bool]:  # noqa: N803
    """torch's `is_causal` aligns the first query with the first key: right only if T == K."""
    if T == 1 or T == K:
        return None, T > 1
    return _may_see(T, K, device), False


def _fused(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=gqa
    )


def _gather(k: Tensor, v: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
    """Keys and values of all sequences end to end, (K, kv_heads, dim)."""
    if packed.slots is None:
        return k, v
    places = list(zip(packed.slots, packed.key_lengths, strict=True))
    keys = torch.cat([k[slot, :length] for slot, length in places])
    return keys, torch.cat([v[slot, :length] for slot, length in places])


def for_each_head(x: Tensor, q: Tensor) -> Tensor:
    """Repeat grouped keys or values so that every head of q has its own; axis 1 is the heads'."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def upcast(x: Tensor) -> Tensor:
    """In fp32 at least, for q times k overflows fp16 in Phi-2."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@lru_cache(maxsize=1)
def list_sequences(packed: Packed, places: int | None) -> Tensor:
    """(S, 4) int64, as `calls.attend` wants it: of slots of so many places, or end to end."""
    slots = packed.slots
    if slots is None or places is None:
        keys = list(accumulate(packed.key_lengths, initial=0))[:-1]
    else:
        keys = [slot * places for slot in slots]
    rows = zip(packed.offsets, packed.lengths, keys, packed.key_lengths, strict=False)
    with torch.inference_mode(False):
        return torch.tensor(list(rows), dtype=torch.int64)


@lru_cache(maxsize=1)
def _block_mask(packed: Packed) -> Any:
    """The mask of a batch, which all layers of one forward share."""
    from torch.nn.attention.flex_attention import create_block_mask

    with torch.inference_mode(False):
        return create_block_mask(
            _document_mask(packed),
            None,
            None,
            packed.num_tokens,
            sum(packed.key_lengths),
            device=packed.positions.device,
        )


def _document_mask(packed: Packed) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    device = packed.positions.device
    counts = torch.tensor(packed.key_lengths, device=device)
    owners = torch.arange(packed.num_sequences, device=device).repeat_interleave(counts)
    firsts = packed.cu_seqlens_k.long()[:-1].repeat_interleave(counts)
    places = torch.arange(len(owners), device=device) - firsts
    sequences, positions = packed.token_sequences, packed.positions

    def may_see(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (owners[key] == sequences[query]) & (places[key] <= positions[query])

    return may_see


@cache
def _flex_kernel(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Callable[..., Any] = flex_attention
    return torch.compile(kernel, dynamic=True) if compiled else kernel


@cache
def _varlen() -> tuple[Callable[..., Any], dict[str, Any], bool]:
    """torch's variable-length kernel, its word for "causal", and whether it groups heads."""
    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    causal = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    return varlen_attn, causal, "enable_gqa" in names


@cache
def _paged() -> Callable[..., Any]:
    """torch's variable-length kernel, if it reads keys through a table of pages."""
    from torch.nn.attention.varlen import varlen_attn

    missing = {"seqused_k", "block_table", "enable_gqa"} - set(
        inspect.signature(varlen_attn).parameters
    )
    if missing:
        raise UnsupportedError(f"torch {torch.__version__}'s varlen_attn has no {min(missing)}")
    return varlen_attn
