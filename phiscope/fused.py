"""A parallel block in one call of a kernel, where few rows pass and nobody looks inside.

The kernel calls those that the steps would call, so what comes out is theirs, bit for bit. Anything
that stands between the steps (a plan's points, a hook, another module in a layer's place, another
attention) makes the block go step by step; so does everything that the kernel does not know. It is
told addresses, and therefore every tensor behind one is looked at before each call.
"""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from phiscope.attention import list_sequences, native
from phiscope.cache import KVCache, list_places
from phiscope.kernels import calls
from phiscope.model import MLP, Attention, ParallelBlock, Pass, compute_in_steps
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

_INNER = (
    *("ln_out", "q", "k", "v", "q_rot", "k_rot", "z"),
    *("attn_out", "mlp_pre", "mlp_act", "mlp_out"),
)
_FLOATS = {  # weight's dtype, activations' dtype: as block.cpp counts
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

Facts = tuple[int, torch.Size, torch.dtype, bool] | None
"""Of a tensor: where it lies, its shape and dtype, and whether its elements lie together."""
Heads = tuple[int, int, int]
"""Query heads, key-value heads, and their dim."""


class _UnknownError(Exception):
    """The kernel does not know such a block."""


class FusedBlock:
    """Computes one block, by the kernel where it can; keeps what the kernel is told of it."""

    def __init__(self) -> None:
        self._known: tuple[object, ...] = ()
        self._described: bytes | None = None

    def __call__(self, block: ParallelBlock, x: Tensor, run: Pass) -> Tensor:
        described = self._describe(block, x.dtype) if _is_simple(block, x, run) else None
        if described is None:
            return compute_in_steps(block, x, run)
        cache, packed = run.cache, run.packed
        assert isinstance(cache, KVCache)
        places = list_places(packed, cache.num_places)
        sequences = list_sequences(packed, cache.num_places)
        where = (run.cos, run.sin, *cache.layers[block.layer], places, sequences)
        return calls.run_block(described, x, where, num_keys=sum(packed.key_lengths))

    def _describe(self, block: ParallelBlock, dtype: torch.dtype) -> bytes | None:
        """What the kernel is told; None if the block is not what the kernel computes."""
        attention, mlp = block.self_attn, block.mlp
        if type(mlp) is not MLP:
            return None
        linears = (attention.qkv_proj, attention.dense, mlp.fc1, mlp.fc2)
        layers = (block.input_layernorm, *linears)
        if _are_watched((block, attention, mlp, block.dropout, *layers)):
            return None
        steps = (attention.backend, mlp.activation, attention.rotate, attention.place)
        heads = (*attention.heads[:2], attention.head_dim)
        settings = tuple(map(_read_settings, layers))
        known = (steps, heads, dtype, type(block.dropout), settings, *map(_look, layers))
        if known != self._known:
            is_ours = steps == (native, gelu_in_place, rotate_in_place, place_in_slots)
            is_plain = type(block.dropout) is nn.Dropout and not hasattr(attention, "q_layernorm")
            self._described = _try_describe(layers, heads, dtype) if is_ours and is_plain else None
            self._known = known
        return self._described


def _is_simple(block: ParallelBlock, x: Tensor, run: Pass) -> bool:
    cache, attention = run.cache, block.self_attn
    return (
        type(cache) is KVCache
        and type(attention) is Attention
        and len(x) <= calls.FEW_ROWS
        and x.shape[1:] == getattr(block.input_layernorm, "normalized_shape", None)
        and x.is_contiguous()
        and cache.data.dtype == x.dtype
        and cache.data.shape[-2:] == (attention.heads[1], attention.head_dim)
        and calls.serves_attention(x.dtype)
        and not torch.is_grad_enabled()
        and (run.plan is None or not _looks_inside(run.plan, block.layer))
    )


def _looks_inside(plan: Plan, layer: int) -> bool:
    return plan.wants_maps(layer) or any(plan.wants(name, layer) for name in _INNER)


def _are_watched(modules: Sequence[nn.Module]) -> bool:
    """Whether calling one of these modules does more than its class says."""
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        return True
    return any(
        m._forward_hooks or m._forward_pre_hooks or m.training or "forward" in m.__dict__
        for m in modules
    )


def _read_settings(layer: nn.Module) -> tuple[object, ...]:
    """What a layer computes with beside its tensors."""
    attributes = layer.__dict__
    return (type(layer), *(attributes.get(name) for name in ("eps", "wide")))


def _look(layer: nn.Module) -> tuple[Facts, ...]:
    return tuple(
        None if x is None else (x.data_ptr(), x.shape, x.dtype, x.is_contiguous())
        for x in _list_tensors(layer)
    )


def _list_tensors(layer: nn.Module) -> list[Tensor | None]:
    """By name, for the order in which a module keeps them may change; of other classes none."""
    kept = layer._buffers if type(layer) in _QUANTIZED else layer._parameters
    return [kept.get(name) for name in _TENSORS.get(type(layer), ())]


def _try_describe(layers: Sequence[nn.Module], heads: Heads, dtype: torch.dtype) -> bytes | None:
    try:
        return _describe(layers, heads, dtype)
    except _UnknownError:
        return None


def _describe(layers: Sequence[nn.Module], heads: Heads, dtype: torch.dtype) -> bytes:
    """As block.cpp reads it. Raises `_UnknownError` for a layer or a size that it does not know."""
    norm, *linears = layers
    queries, keys, dim = heads
    _expect(type(norm) in _NORMS)
    assert isinstance(norm, StreamedNorm | WideNorm)
    (hidden,) = norm.normalized_shape
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
    block = struct.pack("ld2P3l", kind, norm.eps, weight.data_ptr(), bias.data_ptr(), *heads)
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
