"""A parallel block in one call of a kernel, where few rows pass and nobody looks inside.

The kernel calls those that the steps would call, so what comes out is theirs, bit for bit. Anything
that stands between the steps (a plan's points, a hook, another module in a layer's place, another
attention) makes the block go step by step.
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
    (torch.bfloat16, torch.bfloat16): 2,
}
_INT8, _INT8_WIDE, _INT4 = 3, 4, 5


class FusedBlock:
    """Computes one block, by the kernel where it can; keeps what the kernel is told of it."""

    def __init__(self) -> None:
        self._known: tuple[object, ...] = ()
        self._described: bytes | None = None

    def __call__(self, block: ParallelBlock, x: Tensor, run: Pass) -> Tensor:
        described = self._describe(block, x.dtype) if _is_simple(block.layer, x, run) else None
        if described is None:
            return compute_in_steps(block, x, run)
        cache, packed = run.cache, run.packed
        assert isinstance(cache, KVCache)
        places, sequences = (
            list_places(packed, cache.num_places),
            list_sequences(packed, cache.num_places),
        )
        where = (run.cos, run.sin, *cache.layers[block.layer], places, sequences)
        return calls.run_block(described, x, where, num_keys=sum(packed.key_lengths))

    def _describe(self, block: ParallelBlock, dtype: torch.dtype) -> bytes | None:
        """What the kernel is told; None if the block is not what the kernel computes."""
        attention, mlp = block.self_attn, block.mlp
        if type(attention) is not Attention or type(mlp) is not MLP:
            return None
        linears = (attention.qkv_proj, attention.dense, mlp.fc1, mlp.fc2)
        layers = (block.input_layernorm, *linears)
        if _are_watched((block, attention, mlp, *layers)):
            return None
        tensors = [x for layer in layers for x in _tensors_of(layer)]
        steps = (attention.backend, mlp.activation, attention.rotate, attention.place)
        known = (*steps, *layers, dtype, *(x.data_ptr() for x in tensors))
        if known != self._known:
            is_ours = steps == (native, gelu_in_place, rotate_in_place, place_in_slots)
            is_plain = is_ours and not hasattr(attention, "q_layernorm")
            shape = (*attention.heads[:2], attention.head_dim)
            self._described = _describe(shape, layers, dtype) if is_plain else None
            self._known = known
        return self._described


def _is_simple(layer: int, x: Tensor, run: Pass) -> bool:
    cache = run.cache
    return (
        len(x) <= calls.FEW_ROWS
        and isinstance(cache, KVCache)
        and x.is_contiguous()
        and cache.data.dtype == x.dtype
        and calls.serves_attention(x.dtype)
        and not torch.is_grad_enabled()
        and (run.plan is None or not _looks_inside(run.plan, layer))
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


def _tensors_of(layer: nn.Module) -> list[Tensor]:
    found = (*layer._parameters.values(), *layer._buffers.values())
    return [x for x in found if x is not None]


def _describe(
    shape: tuple[int, int, int], layers: Sequence[nn.Module], dtype: torch.dtype
) -> bytes | None:
    """As block.cpp reads it; None if a layer is none of those it knows.

    `shape` is how many query heads and key-value heads there are, and their dim.
    """
    norm, *linears = layers
    if not isinstance(norm, StreamedNorm | WideNorm):
        return None
    kind = _FLOATS.get((norm.weight.dtype, dtype))
    described = [_describe_linear(linear, dtype) for linear in linears]
    if kind is None or None in described:
        return None
    at = (norm.weight.data_ptr(), norm.bias.data_ptr())
    return struct.pack("ld2P3l", kind, norm.eps, *at, *shape) + b"".join(
        one for one in described if one is not None
    )


def _describe_linear(linear: nn.Module, dtype: torch.dtype) -> bytes | None:
    tensors = _tensors_of(linear)
    if isinstance(linear, QuantizedLinear):
        kind = _count_integers(linear) if dtype == torch.float32 else None
        outs, width, padded = linear.out_features, linear.in_features, linear.padded_in_features
    elif isinstance(linear, StreamedLinear | WideLinear):
        kind = _FLOATS.get((linear.weight.dtype, dtype))
        outs, width = linear.weight.shape
        padded = width
    else:
        return None
    if kind is None or not all(x.is_contiguous() for x in tensors):
        return None
    parts = [x.data_ptr() for x in tensors]
    parts += [0] * (4 - len(parts))
    return struct.pack("5l4P", kind, tensors[0].nbytes, width, padded, outs, *parts)


def _count_integers(linear: QuantizedLinear) -> int | None:
    if isinstance(linear, Int8Linear):
        return _INT8_WIDE if linear.wide else _INT8
    return _INT4 if isinstance(linear, Int4Linear) and not linear.wide else None
