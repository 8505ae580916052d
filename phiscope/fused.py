"""Parallel blocks in one call of a kernel, where few rows pass and nobody looks inside.

The kernel calls those that the steps would call, so what comes out is theirs, bit for bit. Anything
that stands between the steps (a plan's points, a hook, another module in a layer's place, another
attention) makes a block go step by step; so does everything that the kernel does not know. It is
told addresses, and therefore every tensor behind one is looked at before each call. What lies
between blocks is all there after a call; so a call ends only where that is changed.
"""

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from phiscope.attention import list_sequences, native
from phiscope.cache import KVCache, list_places
from phiscope.kernels import calls
from phiscope.model import MLP, Attention, ParallelBlock, Pass, run_in_turn
from phiscope.outputs import Plan
from phiscope.quantized import Int4Linear, Int8Linear, QuantizedLinear
from phiscope.streamed import (
    StreamedLinear,
    StreamedNorm,
    gelu_in_place,
    place_in_slots,
    rotate_in_place,
)
from phiscope.wide import WideLinear, WideNorm

_THEM = "blocks in one call"
_INNER = (
    *("ln_out", "q", "k", "v", "q_rot", "k_rot", "z"),
    *("attn_out", "mlp_pre", "mlp_act", "mlp_out"),
)
_FLOATS = {  # weight's dtype, activations' dtype: as blocks.cpp counts
    (torch.float32, torch.float32): 0,
    (torch.bfloat16, torch.float32): 1,
    (torch.float16, torch.float32): 2,
    (torch.bfloat16, torch.bfloat16): 3,
}
_INTEGERS: dict[tuple[type, bool], int] = {  # class, whether it is wide: the same
    (Int8Linear, False): 4,
    (Int8Linear, True): 5,
    (Int4Linear, False): 6,
}
_QUANTIZED = (Int8Linear, Int4Linear)
_NORMS = (StreamedNorm, WideNorm)
_TENSORS: dict[type, tuple[str, ...]] = {  # in the order in which the kernels take them
    **dict.fromkeys((StreamedLinear, WideLinear, *_NORMS), ("weight", "bias")),
    Int8Linear: ("panels", "scales", "bias"),
    Int4Linear: ("panels", "multipliers", "scales", "bias"),
}

Heads = tuple[int, int, int]
"""Query heads, key-value heads, and their dim."""
Like = tuple[torch.dtype, torch.Size, torch.Size]
"""Of what flows: the dtype and a row's shape; the cache's shape."""
Modules = dict[str, Any]
Attributes = dict[str, Any]
"""Of a module, as it keeps them. They are read here some ten thousand times in a second."""


class _UnknownError(Exception):
    """The kernel does not know such a block."""


class FusedBlocks:
    """Computes blocks by the kernel where it can; keeps what the kernel is told of them."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[tuple[object, ...], bytes | None]] = {}

    def __call__(self, blocks: Sequence[ParallelBlock], x: Tensor, run: Pass) -> Tensor:
        cache = run.cache
        if type(cache) is not KVCache or not _are_served(x, cache):
            return run_in_turn(blocks, x, run)
        while blocks:
            told = self._describe_first(blocks, x, cache, run.plan)
            x = _run(blocks[: len(told)], told, x, run, cache) if told else blocks[0](x, run)
            blocks = blocks[len(told) or 1 :]
        return x

    def _describe_first(
        self, blocks: Sequence[ParallelBlock], x: Tensor, cache: KVCache, plan: Plan | None
    ) -> list[bytes]:
        """What the kernel is told of the blocks that it computes before something is changed."""
        like = x.dtype, x.shape[1:], cache.data.shape
        told: list[bytes] = []
        for block in blocks:
            if plan is not None:
                if told and _changes_before(plan, block.layer):
                    break
                if _looks_inside(plan, block.layer):
                    break
            described = self._describe(block, like)
            if described is None:
                break
            told.append(described)
        return told

    def _describe(self, block: ParallelBlock, like: Like) -> bytes | None:
        """What the kernel is told of a block; None if it is not what the kernel computes."""
        parts: Modules = block._modules
        attention, mlp, dropout = parts["self_attn"], parts["mlp"], parts["dropout"]
        if (type(block), type(attention), type(mlp)) != (ParallelBlock, Attention, MLP):
            return None
        a, m = attention.__dict__, mlp.__dict__
        layers = (
            parts["input_layernorm"],
            *(a["_modules"]["qkv_proj"], a["_modules"]["dense"]),
            *(m["_modules"]["fc1"], m["_modules"]["fc2"]),
        )
        others = [module.__dict__ for module in (block, dropout, *layers)]
        if _are_watched([a, m, *others]):
            return None
        layer, heads = a["layer"], (*a["heads"][:2], a["head_dim"])
        steps = (a["backend"], m["activation"], a["rotate"], a["place"])
        kinds = (type(dropout), "q_layernorm" in a["_modules"], block.layer == layer)
        known = (like, heads, steps, kinds, *map(_look, layers))
        if layer not in self._told or self._told[layer][0] != known:
            is_ours = steps == (native, gelu_in_place, rotate_in_place, place_in_slots)
            is_plain = kinds == (nn.Dropout, False, True)
            told = _try_describe(layer, layers, heads, like) if is_ours and is_plain else None
            self._told[layer] = known, told
        return self._told[layer][1]


def _are_served(x: Tensor, cache: KVCache) -> bool:
    """Whether the kernel takes these rows and this cache."""
    return (
        len(x) <= calls.FEW_ROWS
        and cache.data.dtype == x.dtype
        and calls.serves_attention(x.dtype)
        and not torch.is_grad_enabled()
    )


def _run(
    blocks: Sequence[ParallelBlock], told: Sequence[bytes], x: Tensor, run: Pass, cache: KVCache
) -> Tensor:
    """Blocks of which nothing is changed in between; their points are shown afterwards."""
    packed = run.packed
    x = run.at("resid_pre", blocks[0].layer, x)
    places = list_places(packed, cache.num_places)
    sequences = list_sequences(packed, cache.num_places)
    where = (run.cos, run.sin, cache.data, places, sequences)
    outs = calls.run_blocks(told, x, where, num_keys=sum(packed.key_lengths))
    if run.plan is None:
        return outs[-1]
    for block, out in zip(blocks, outs, strict=True):
        if block is not blocks[0]:
            run.at("resid_pre", block.layer, x)
        x = run.at("resid_post", block.layer, out)
    return x


def _changes_before(plan: Plan, layer: int) -> bool:
    """Whether what the block before gives is not what this one gets."""
    return plan.changes("resid_post", layer - 1) or plan.changes("resid_pre", layer)


def _looks_inside(plan: Plan, layer: int) -> bool:
    return plan.wants_maps(layer) or any(plan.wants(name, layer) for name in _INNER)


def _are_watched(modules: Sequence[Attributes]) -> bool:
    """Whether calling one of these modules does more than its class says."""
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        return True
    return any(
        m["_forward_hooks"] or m["_forward_pre_hooks"] or m["training"] or "forward" in m
        for m in modules
    )


def _look(layer: nn.Module) -> tuple[object, ...]:
    """What a layer computes with: its settings, and of its tensors where each lies and how."""
    settings = layer.__dict__
    facts: list[object] = [type(layer), settings.get("eps"), settings.get("wide")]
    for x in _list_tensors(layer):
        facts += (None,) if x is None else (x.data_ptr(), x.dtype, x.size(), x.stride())
    return tuple(facts)


def _list_tensors(layer: nn.Module) -> list[Tensor | None]:
    """By name, for the order in which a module keeps them may change; of other classes none."""
    kept = layer.__dict__["_buffers" if type(layer) in _QUANTIZED else "_parameters"]
    return [kept.get(name) for name in _TENSORS.get(type(layer), ())]


def _try_describe(
    layer: int, layers: Sequence[nn.Module], heads: Heads, like: Like
) -> bytes | None:
    try:
        return _describe(layer, layers, heads, like)
    except _UnknownError:
        return None


def _describe(layer: int, layers: Sequence[nn.Module], heads: Heads, like: Like) -> bytes:
    """As blocks.cpp reads it; `_UnknownError` for a layer or a size that it does not know."""
    norm, *linears = layers
    queries, keys, dim = heads
    dtype, shape, cache_shape = like
    _expect(type(norm) in _NORMS)
    assert isinstance(norm, StreamedNorm | WideNorm)
    (hidden,) = norm.normalized_shape
    _expect(shape == (hidden,) and cache_shape[-2:] == (keys, dim) and layer < cache_shape[0])
    qkv, dense, fc1, fc2 = map(_read_sizes, linears)
    _expect(qkv == (hidden, (queries + 2 * keys) * dim))
    _expect(dense == (queries * dim, hidden))
    _expect(fc1[0] == hidden and fc2 == (fc1[1], hidden))
    weight, bias = _list_tensors(norm)
    _expect(weight is not None and bias is not None and bias.dtype == weight.dtype)
    assert weight is not None
    assert bias is not None
    _expect(weight.is_contiguous() and bias.is_contiguous())
    _expect(weight.shape == bias.shape == (hidden,))
    kind = _FLOATS.get((weight.dtype, dtype))
    _expect(kind is not None)
    at = weight.data_ptr(), bias.data_ptr()
    block = struct.pack("2ld2P3l", layer, kind, norm.eps, *at, *heads)
    return block + b"".join(_describe_linear(linear, dtype) for linear in linears)


def _describe_linear(linear: nn.Module, dtype: torch.dtype) -> bytes:
    width, outs = _read_sizes(linear)
    *parts, bias = _list_tensors(linear)
    first = parts[0]
    _expect(all(x is not None and x.is_contiguous() for x in parts))
    assert first is not None
    kind: int | None
    if isinstance(linear, QuantizedLinear):
        kind = _INTEGERS.get((type(linear), linear.wide)) if dtype == torch.float32 else None
        shapes = linear.shapes(width, outs).values()
        found = [(tuple(x.shape), x.dtype) for x in parts if x is not None]
        _expect(found == list(shapes))
        padded, bias_dtype = linear.padded_in_features, torch.float32
    else:
        kind, padded, bias_dtype = _FLOATS.get((first.dtype, dtype)), width, first.dtype
    if bias is not None:
        _expect(bias.shape == (outs,) and bias.is_contiguous() and bias.dtype == bias_dtype)
    _expect(kind is not None)
    at = [0 if x is None else x.data_ptr() for x in (*parts, bias)]
    at += [0] * (4 - len(at))
    return struct.pack("5l4P", kind, first.nbytes, width, padded, outs, *at)


def _read_sizes(linear: nn.Module) -> tuple[int, int]:
    """Inputs and outputs."""
    if type(linear) in (StreamedLinear, WideLinear):
        weight, _ = _list_tensors(linear)
        _expect(weight is not None and weight.ndim == 2)
        assert weight is not None
        return weight.shape[1], weight.shape[0]
    if type(linear) in _QUANTIZED:
        assert isinstance(linear, QuantizedLinear)
        return linear.in_features, linear.out_features
    raise _UnknownError


def _expect(condition: bool) -> None:
    if not condition:
        raise _UnknownError
