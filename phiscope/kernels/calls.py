"""The kernels as functions of tensors. They check nothing but what would read foreign memory.

Each is for inference: no gradients pass. Tensors lie on the CPU.
"""

import ctypes
import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from phiscope.kernels.build import open_kernels

FEW_ROWS = 16
"""Rows up to which a product waits for memory and not for arithmetic."""
_THREAD_BYTES = 2**18
_LINEAR = {  # weight's dtype, activations' dtype: kernel
    (torch.float32, torch.float32): "linear_fp32",
    (torch.bfloat16, torch.float32): "linear_bf16_fp32",
    (torch.float16, torch.float32): "linear_fp16_fp32",
    (torch.bfloat16, torch.bfloat16): "linear_bf16",
}
_NORM = {kinds: name.replace("linear", "norm") for kinds, name in _LINEAR.items()}
_SUFFIXES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_NAMES = {**_SUFFIXES, torch.float16: "fp16"}


def serves_linear(weight: torch.dtype, x: torch.dtype | None = None) -> bool:
    """Whether `linear` takes weights and activations of these dtypes, or all of the one."""
    return (weight, weight if x is None else x) in _LINEAR


def serves_attention(dtype: torch.dtype) -> bool:
    """Whether `attend` takes this dtype."""
    return dtype in _SUFFIXES


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (rows, width) times weight (outs, width), with sums in fp32: for few rows."""
    x = x.contiguous()
    rows, width = x.shape
    outs = weight.shape[0]
    assert weight.shape[1] == width
    assert weight.is_contiguous()
    assert bias is None or bias.dtype == weight.dtype
    y = x.new_empty(rows, outs)
    kernel = _function(_LINEAR[weight.dtype, x.dtype], 4, 3)
    kernel(
        _at(x), _at(weight), _at(bias), _at(y), rows, width, outs, _threads(weight.nbytes * rows)
    )
    return y


def linear_wide(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (rows, width) fp32 times weight (outs, width) bf16 or fp16, in fp32: for many rows."""
    x = x.contiguous()
    rows, width = x.shape
    outs = weight.shape[0]
    assert weight.shape[1] == width
    assert weight.is_contiguous()
    assert bias is None or bias.dtype == weight.dtype
    y = x.new_empty(rows, outs)
    threads = _threads(weight.nbytes * rows)
    _function(f"linear_{_NAMES[weight.dtype]}_wide", 4, 3)(
        _at(x), _at(weight), _at(bias), _at(y), rows, width, outs, threads
    )
    return y


def linear_int8(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """x (rows, width) fp32 times 8-bit panels (outs / 16, width / 4, 64); see quantized.py."""
    x = x.contiguous()
    rows, outs = len(x), len(scales)
    y = x.new_empty(rows, outs)
    sizes = (rows, x.shape[1], 4 * weight.shape[1], outs, _threads(weight.nbytes * rows))
    _function("linear_int8", 5, 4)(_at(x), _at(weight), _at(scales), _at(bias), _at(y), *sizes)
    return y


def linear_int8_wide(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """As `linear_int8`, but x is not rounded."""
    x = x.contiguous()
    rows, outs = len(x), len(scales)
    y = x.new_empty(rows, outs)
    sizes = (rows, x.shape[1], 4 * weight.shape[1], outs, _threads(weight.nbytes * rows))
    _function("linear_int8_wide", 5, 4)(_at(x), _at(weight), _at(scales), _at(bias), _at(y), *sizes)
    return y


def linear_int4(
    x: Tensor, weight: Tensor, multipliers: Tensor, scales: Tensor, bias: Tensor | None
) -> Tensor:
    """x (rows, width) fp32 times 4-bit panels (outs / 16, width / 8, 64); see quantized.py."""
    x = x.contiguous()
    rows, outs = len(x), len(scales)
    y = x.new_empty(rows, outs)
    sizes = (rows, x.shape[1], 8 * weight.shape[1], outs, _threads(weight.nbytes * rows))
    _function("linear_int4", 6, 4)(
        _at(x), _at(weight), _at(multipliers), _at(scales), _at(bias), _at(y), *sizes
    )
    return y


def serves_rounding(weight: torch.dtype) -> bool:
    """Whether `round_int8` and `round_int4` take weights of this dtype."""
    return weight in _NAMES


def round_int8(weight: Tensor, panels: Tensor, scales: Tensor, *, threads: int) -> None:
    """Round rows (outs, width) into panels and scales; see rounding.py."""
    weight, sizes = _prepare_rounding(weight, panels, scales, per_step=4)
    kernel = _function(f"round_int8_{_NAMES[weight.dtype]}", 3, 3)
    kernel(_at(weight), _at(panels), _at(scales), *sizes, threads)


def round_int4(
    weight: Tensor, panels: Tensor, multipliers: Tensor, scales: Tensor, *, threads: int
) -> None:
    """Round rows (outs, width) into panels, multipliers and scales; see rounding.py."""
    weight, sizes = _prepare_rounding(weight, panels, scales, per_step=8)
    assert multipliers.is_contiguous()
    assert multipliers.numel() * 16 == panels.numel()
    kernel = _function(f"round_int4_{_NAMES[weight.dtype]}", 4, 3)
    kernel(_at(weight), _at(panels), _at(multipliers), _at(scales), *sizes, threads)


def _prepare_rounding(
    weight: Tensor, panels: Tensor, scales: Tensor, *, per_step: int
) -> tuple[Tensor, tuple[int, int, int]]:
    """The weight's rows one after the other; their number, their width, and the panels' width."""
    rows, width = weight.shape
    padded = panels.shape[1] * per_step
    assert panels.is_contiguous()
    assert scales.is_contiguous()
    assert len(scales) == rows
    assert rows <= 16 * len(panels) < rows + 64
    assert width <= padded
    return weight.contiguous(), (rows, width, padded)


def attend(q: Tensor, keys: Tensor, values: Tensor, sequences: Tensor, *, num_keys: int) -> Tensor:
    """Causal attention of q (N, heads, dim) to keys and values (..., kv_heads, dim).

    Each row of `sequences` (S, 4) int64 has a sequence's first new token, how many there are, the
    place of its first key, counted over all axes before the last two, and how many keys there are;
    `num_keys` is their sum.
    """
    _, heads, dim = q.shape
    q = _close_heads(q)
    out = q.new_empty(q.shape)
    assert keys.is_contiguous()
    assert values.is_contiguous()
    assert keys.dtype == values.dtype == q.dtype
    kernel = _function(f"attend_{_SUFFIXES[q.dtype]}", 5, 5)
    pointers = map(_at, (q, keys, values, out, sequences))
    kv_heads = keys.shape[-2]
    threads = _threads(2 * num_keys * kv_heads * dim * keys.itemsize)
    kernel(*pointers, len(sequences), q.stride(0), heads, kv_heads, dim, threads)
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis of x (..., width), with sums in fp32."""
    x = x.contiguous()
    y = torch.empty_like(x)
    assert weight.is_contiguous()
    assert bias.is_contiguous()
    assert weight.shape == bias.shape == x.shape[-1:]
    assert weight.dtype == bias.dtype
    kernel = _function(_NORM[weight.dtype, x.dtype], 4, 2, has_factor=True)
    sizes = (x.shape[:-1].numel(), x.shape[-1])
    kernel(_at(x), _at(weight), _at(bias), _at(y), *sizes, eps, _threads(x.nbytes))
    return y


def gelu(x: Tensor) -> Tensor:
    """GELU by its tanh formula, written into x itself."""
    assert x.is_contiguous()
    _function(f"gelu_{_SUFFIXES[x.dtype]}", 1, 1)(_at(x), x.numel(), _threads(x.nbytes))
    return x


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (N, heads, dim) itself by angles (N, rotary_dim / 2), as `rotary.rotate` would."""
    tokens, heads, dim = x.shape
    x = _close_heads(x)
    kernel = _function(f"rotate_{_SUFFIXES[x.dtype]}", 3, 5)
    sizes = (tokens, x.stride(0), heads, dim, cos.shape[1], _threads(x.nbytes))
    kernel(_at(x), _at(cos), _at(sin), *sizes)
    return x


def place(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    angles: tuple[Tensor, Tensor],
    layer: tuple[Tensor, Tensor],
    places: Tensor,
) -> tuple[Tensor, Tensor]:
    """Turn q (N, heads, dim) and k (N, kv_heads, dim) themselves; keep k and v (N, kv_heads, dim).

    `angles` are cos and sin as for `rotate`; `layer` the keys and values of a cache (..., kv_heads,
    dim), and `places` (N,) int64 counts over all their axes before the last two.
    """
    (keys, values), (cos, sin) = layer, angles
    tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    assert keys.shape == values.shape
    assert keys.shape[-2:] == k.shape[1:] == v.shape[1:]
    assert keys.is_contiguous()
    assert values.is_contiguous()
    assert keys.dtype == values.dtype == q.dtype
    q, k, v = map(_close_heads, (q, k, v))
    kernel = _function(f"place_{_SUFFIXES[q.dtype]}", 8, 8)
    sizes = (tokens, q.stride(0), k.stride(0), v.stride(0), heads, kv_heads, dim, cos.shape[1])
    pointers = map(_at, (q, k, v, cos, sin, keys, values, places))
    kernel(*pointers, *sizes, _threads(q.nbytes))
    return q, k


def run_blocks(
    blocks: Sequence[bytes], x: Tensor, where: Sequence[Tensor], *, num_keys: int
) -> Tensor:
    """Whole blocks for few rows x (rows, hidden), each described as blocks.cpp reads it.

    Gives what comes out of each block, (blocks, rows, hidden). `where` are cos and sin (rows,
    rotary_dim / 2), a cache (layers, 2, ..., kv_heads, dim), the tokens' places in a layer's keys
    as for `place`, and the sequences as for `attend`.
    """
    cos, _, cache, places, sequences = where
    assert all(one.is_contiguous() for one in where)
    assert len(x) == len(cos) == len(places)
    assert cache.dtype == x.dtype
    x = x.contiguous()
    outs = x.new_empty(len(blocks), *x.shape)
    pointers = [one.data_ptr() for one in (x, outs, *where)]
    sizes = (*cache.stride()[:2], len(blocks), len(x), len(sequences), num_keys, cos.shape[1])
    kernel = getattr(open_kernels(), f"blocks_{_SUFFIXES[x.dtype]}")
    kernel(b"".join(blocks), struct.pack("7P7l", *pointers, *sizes), torch.get_num_threads())
    return outs


def sum_sequences(x: Tensor, lengths: Tensor) -> Tensor:
    """(S, width): sums of x (N, width) fp32 over rows end to end, `lengths` (S,) int64 of each."""
    x, lengths = x.contiguous(), lengths.contiguous()
    y = x.new_empty(len(lengths), x.shape[1])
    assert x.dtype == torch.float32
    assert int(lengths.sum()) == len(x)
    sizes = (len(lengths), x.shape[1], _threads(x.nbytes))
    _function("sum_sequences", 3, 2)(_at(x), _at(lengths), _at(y), *sizes)
    return y


def is_finite(address: int, count: int, *, bits: int, exponent: int) -> bool:
    """Whether none of `count` numbers of 16 or 32 bits has all these bits of its exponent set."""
    return bool(_test(f"is_finite_{bits}")(address, count, exponent))


def _close_heads(x: Tensor) -> Tensor:
    """x (N, heads, dim), with a token's heads one after the other; copied if they are not."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def _threads(num_bytes: int) -> int:
    """As many as torch has, but one for what is done sooner than they would come together."""
    return torch.get_num_threads() if num_bytes > _THREAD_BYTES else 1


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


@cache
def _function(
    name: str, num_pointers: int, num_sizes: int, *, has_factor: bool = False
) -> Callable[..., Any]:
    """A kernel that takes pointers, sizes, perhaps a factor, and last the number of threads."""
    function = getattr(open_kernels(), name)
    function.restype = None
    pointers, sizes = [ctypes.c_void_p] * num_pointers, [ctypes.c_long] * num_sizes
    factor = [ctypes.c_float] * has_factor
    function.argtypes = [*pointers, *sizes, *factor, ctypes.c_int]
    found: Callable[..., Any] = function
    return found


@cache
def _test(name: str) -> Callable[[int, int, int], int]:
    """A kernel that takes an address, a number of elements, and what they are tested for."""
    function = getattr(open_kernels(), name)
    function.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_int]
    found: Callable[[int, int, int], int] = function
    return found
