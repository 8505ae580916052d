"""Rotation and the writing of a cache in one Triton kernel: a program for each token and head."""

import triton
import triton.language as tl
from torch import Tensor


def rotate_and_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    angles: tuple[Tensor, Tensor],
    planes: tuple[Tensor, Tensor],
    where: tuple[Tensor, Tensor],
) -> None:
    """Rotate q (S, heads, dim) in place; write k, rotated, and v (S, kv_heads, dim) to the cache.

    `angles` are cosines and sines (S, rotary_dim / 2) in fp32, `planes` keys and values (slots,
    places, kv_heads, dim), and `where` the slot and the place of each token (S,) int64.
    """
    (count, heads, dim), kv_heads = q.shape, k.shape[1]
    cos, sin = (x.contiguous() for x in angles)
    keys, values = planes
    assert q.stride(2) == k.stride(2) == v.stride(2) == keys.stride(3) == 1
    assert keys.stride() == values.stride()
    half = cos.shape[1]
    _rotate_and_write[(count, heads + kv_heads)](
        *(q, k, v, cos, sin, keys, values, *where),
        *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *keys.stride()[:3]),
        heads,
        HALF=half,
        HALF_WIDE=triton.next_power_of_2(half),
        DIM=dim,
        WIDE=triton.next_power_of_2(dim),
    )


@triton.jit
def _rotate_and_write(
    q,
    k,
    v,
    cos,
    sin,
    keys,
    values,
    slots,
    positions,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    slot_stride,
    place_stride,
    head_stride,
    heads,
    HALF: tl.constexpr,
    HALF_WIDE: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
):
    token, head = tl.program_id(0), tl.program_id(1)
    turned = tl.arange(0, HALF_WIDE)
    is_turned = turned < HALF
    c = tl.load(cos + token * HALF + turned, mask=is_turned, other=0)
    s = tl.load(sin + token * HALF + turned, mask=is_turned, other=0)
    if head < heads:
        at = q + token * q_stride + head * q_head_stride + turned
        first = tl.load(at, mask=is_turned, other=0).to(tl.float32)
        second = tl.load(at + HALF, mask=is_turned, other=0).to(tl.float32)
        tl.store(at, first * c - second * s, mask=is_turned)
        tl.store(at + HALF, second * c + first * s, mask=is_turned)
    else:
        kv_head = head - heads
        slot = tl.load(slots + token).to(tl.int64)
        place = slot * slot_stride + tl.load(positions + token) * place_stride
        place += kv_head * head_stride
        row = k + token * k_stride + kv_head * k_head_stride
        first = tl.load(row + turned, mask=is_turned, other=0).to(tl.float32)
        second = tl.load(row + HALF + turned, mask=is_turned, other=0).to(tl.float32)
        tl.store(keys + place + turned, first * c - second * s, mask=is_turned)
        tl.store(keys + place + HALF + turned, second * c + first * s, mask=is_turned)
        dims = tl.arange(0, WIDE)
        is_kept = (dims >= 2 * HALF) & (dims < DIM)
        kept = tl.load(row + dims, mask=is_kept, other=0)
        tl.store(keys + place + dims, kept, mask=is_kept)
        value = tl.load(v + token * v_stride + kv_head * v_head_stride + dims, mask=dims < DIM)
        tl.store(values + place + dims, value, mask=dims < DIM)
