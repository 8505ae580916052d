"""Attention of single new tokens to cache slots, in Triton: one program for each sequence, head and
part of the places, so that a single sequence fills a GPU, and a second kernel that joins the parts.

What lies beyond a sequence's length, which only the device knows, is not read. Sums are in fp32.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_PART = 64
"""Places that one program looks at."""
_BLOCK = 32
"""Places that it looks at together."""


def attend_to_slots(
    q: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor, num_places: int
) -> Tensor:
    """q (S, heads, dim) over places 0 to `positions[i]` of slot `slots[i]`, as q is.

    Keys and values are (slots, places, kv_heads, dim); at most `num_places` of them are looked at.
    """
    count, heads, dim = q.shape
    assert q.stride(2) == keys.stride(3) == values.stride(3) == 1
    assert keys.stride() == values.stride()
    num_parts = triton.cdiv(num_places, _PART)
    sums = q.new_empty(count, heads, num_parts, dim, dtype=torch.float32)
    weights = q.new_empty(2, count, heads, num_parts, dtype=torch.float32)
    output = q.new_empty(count, heads, dim)
    wide = triton.next_power_of_2(dim)
    _attend[(count, heads, num_parts)](
        *(q, keys, values, slots, positions, sums, weights[0], weights[1]),
        *(q.stride(0), q.stride(1), *keys.stride()[:3]),
        1 / math.sqrt(dim),
        heads // keys.shape[2],
        num_parts,
        DIM=dim,
        WIDE=wide,
        PART=_PART,
        BLOCK=_BLOCK,
    )
    _join[(count, heads)](
        *(sums, weights[0], weights[1], output, num_parts),
        DIM=dim,
        WIDE=wide,
        PARTS=triton.next_power_of_2(num_parts),
    )
    return output


@triton.jit
def _attend(
    q,
    k,
    v,
    slots,
    positions,
    sums,
    highest,
    totals,
    q_stride,
    q_head_stride,
    slot_stride,
    place_stride,
    head_stride,
    scale,
    group,
    num_parts,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One part's sum of values, its highest score and its sum of weights."""
    sequence, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(positions + sequence).to(tl.int32) + 1
    dims = tl.arange(0, WIDE)
    query = tl.load(q + sequence * q_stride + head * q_head_stride + dims, mask=dims < DIM, other=0)
    query = query.to(tl.float32) * scale
    plane = tl.load(slots + sequence).to(tl.int64) * slot_stride + (head // group) * head_stride
    peak = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    output = tl.zeros((WIDE,), tl.float32)
    for begin in range(part * PART, tl.minimum(part * PART + PART, length), BLOCK):
        places = begin + tl.arange(0, BLOCK)
        mask = (places < length)[:, None] & (dims < DIM)[None, :]
        where = plane + places[:, None] * place_stride + dims[None, :]
        keys = tl.load(k + where, mask=mask, other=0).to(tl.float32)
        scores = tl.sum(keys * query[None, :], axis=1)
        scores = tl.where(places < length, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=0))
        weights = tl.exp(scores - higher)
        values = tl.load(v + where, mask=mask, other=0).to(tl.float32)
        shrink = tl.exp(peak - higher)
        output = output * shrink + tl.sum(weights[:, None] * values, axis=0)
        total = total * shrink + tl.sum(weights, axis=0)
        peak = higher
    place = (sequence * tl.num_programs(1) + head) * num_parts + part
    tl.store(sums + place * DIM + dims, output, mask=dims < DIM)
    tl.store(highest + place, peak)
    tl.store(totals + place, total)


@triton.jit
def _join(
    sums,
    highest,
    totals,
    output,
    num_parts,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The parts of one sequence's head as one."""
    row = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    parts, dims = tl.arange(0, PARTS), tl.arange(0, WIDE)
    is_part = parts < num_parts
    peaks = tl.load(highest + row * num_parts + parts, mask=is_part, other=float("-inf"))
    shares = tl.exp(peaks - tl.max(peaks, axis=0))  # 0 for a part that has no places
    total = tl.sum(
        shares * tl.load(totals + row * num_parts + parts, mask=is_part, other=0), axis=0
    )
    where = (row * num_parts + parts)[:, None] * DIM + dims[None, :]
    mask = is_part[:, None] & (dims < DIM)[None, :]
    joined = tl.sum(shares[:, None] * tl.load(sums + where, mask=mask, other=0), axis=0) / total
    tl.store(output + row * DIM + dims, joined, mask=dims < DIM)
