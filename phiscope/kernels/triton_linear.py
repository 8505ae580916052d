"""Products of few rows with a weight in Triton: each program reads some outputs' weights once, for
all rows. Weights are floats, 8-bit with a scale for each output, or 4-bit as `Int4Rows` says.

Activations stay what they are; products and sums are in fp32.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

MOST_ROWS = 8
"""Rows up to which reading the weight takes longer than the arithmetic."""
_TILES = {1: (4, 1024), 2: (4, 512), 4: (4, 256), 8: (4, 128)}
"""For so many rows, outputs of a program and inputs that it takes at a time."""


class Int4Rows(NamedTuple):
    """weight = scale * m * q, with q of -8 to 7 and an m for every 32 inputs of an output."""

    halves: Tensor
    """(outs, inputs / 2) uint8: of 8 inputs, the first four in the lower halves of four bytes and
    the others in the upper ones, as q + 8; inputs are filled up to whole groups of 32."""
    multipliers: Tensor
    """(outs, inputs / 32) uint8."""
    scales: Tensor
    """(outs,) fp32."""


def multiply(x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None) -> Tensor:
    """x (rows, width), at most 8 rows, times weight (outs, width), floats or int8 with scales."""
    rows, width, outs = *x.shape, len(weight)
    assert rows <= MOST_ROWS
    assert weight.shape == (outs, width)
    assert weight.is_contiguous()
    y = x.new_empty(rows, outs)
    filled, num_outs, block = _fit(rows)
    _multiply[(triton.cdiv(outs, num_outs),)](
        *(x.contiguous(), weight, _or(scales, x), _or(bias, x), y, rows, width, outs),
        IS_SCALED=scales is not None,
        HAS_BIAS=bias is not None,
        ROWS=filled,
        OUTS=num_outs,
        BLOCK=block,
    )
    return y


def multiply_int4(x: Tensor, weight: Int4Rows, bias: Tensor | None) -> Tensor:
    """x (rows, width), at most 8 rows, times a weight of 4 bits."""
    (rows, width), outs = x.shape, len(weight.scales)
    assert rows <= MOST_ROWS
    assert weight.halves.is_contiguous()
    assert weight.multipliers.is_contiguous()
    y = x.new_empty(rows, outs)
    filled, num_outs, block = _fit(rows)
    _multiply_int4[(triton.cdiv(outs, num_outs),)](
        *(x.contiguous(), *weight, _or(bias, x), y, rows, width, outs, weight.halves.shape[1]),
        HAS_BIAS=bias is not None,
        ROWS=filled,
        OUTS=num_outs,
        BLOCK=block // 2,
    )
    return y


def _fit(rows: int) -> tuple[int, int, int]:
    filled = triton.next_power_of_2(rows)
    return filled, *_TILES[filled]


def _or(x: Tensor | None, other: Tensor) -> Tensor:
    """A kernel takes no None: something in its place, which it does not read."""
    return other if x is None else x


@triton.jit
def _multiply(
    x,
    weight,
    scales,
    bias,
    y,
    rows,
    width,
    outs,
    IS_SCALED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, out = tl.arange(0, ROWS), tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    is_row, is_out = row < rows, out < outs
    total = tl.zeros((ROWS, OUTS), tl.float32)
    for begin in range(0, width, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        is_place = place < width
        some = tl.load(
            x + row[:, None] * width + place[None, :],
            mask=is_row[:, None] & is_place[None, :],
            other=0,
        ).to(tl.float32)
        part = tl.load(
            weight + out[:, None].to(tl.int64) * width + place[None, :],
            mask=is_out[:, None] & is_place[None, :],
            other=0,
        ).to(tl.float32)
        total += tl.sum(some[:, None, :] * part[None, :, :], axis=2)
    if IS_SCALED:
        total *= tl.load(scales + out, mask=is_out, other=0)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + out, mask=is_out, other=0).to(tl.float32)[None, :]
    where = row[:, None] * outs + out[None, :]
    tl.store(y + where, total, mask=is_row[:, None] & is_out[None, :])


@triton.jit
def _multiply_int4(
    x,
    halves,
    multipliers,
    scales,
    bias,
    y,
    rows,
    width,
    outs,
    num_bytes,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, out = tl.arange(0, ROWS), tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    is_row, is_out = row < rows, out < outs
    total = tl.zeros((ROWS, OUTS), tl.float32)
    for begin in range(0, num_bytes, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        is_weight = is_out[:, None] & (place < num_bytes)[None, :]
        first = out[:, None].to(tl.int64)
        both = tl.load(halves + first * num_bytes + place[None, :], mask=is_weight, other=0)
        group = begin // 16 + tl.arange(0, BLOCK // 16)
        is_group = is_out[:, None] & (group < num_bytes // 16)[None, :]
        m = tl.load(
            multipliers + first * (num_bytes // 16) + group[None, :], mask=is_group, other=0
        ).to(tl.float32)
        m = tl.broadcast_to(m[:, :, None], (OUTS, BLOCK // 16, 16)).reshape(OUTS, BLOCK)
        lower = ((both & 15).to(tl.float32) - 8) * m
        upper = ((both >> 4).to(tl.float32) - 8) * m
        source = place // 4 * 8 + place % 4
        at = x + row[:, None] * width + source[None, :]
        is_lower = is_row[:, None] & (source < width)[None, :]
        is_upper = is_row[:, None] & (source + 4 < width)[None, :]
        some = tl.load(at, mask=is_lower, other=0).to(tl.float32)
        others = tl.load(at + 4, mask=is_upper, other=0).to(tl.float32)
        products = some[:, None, :] * lower[None, :, :] + others[:, None, :] * upper[None, :, :]
        total += tl.sum(products, axis=2)
    total *= tl.load(scales + out, mask=is_out, other=0)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + out, mask=is_out, other=0).to(tl.float32)[None, :]
    where = row[:, None] * outs + out[None, :]
    tl.store(y + where, total, mask=is_row[:, None] & is_out[None, :])
