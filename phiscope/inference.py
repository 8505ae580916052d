"""Making a loaded model ready to run in its mode, with the kernels that this machine can build.

Linear layers are replaced by ones that read their weights at the speed of memory where there are
few rows; attention to a cache and the rotation become kernels that take a whole batch in one call.
On a GPU that concerns steps which only decode; without the kernels they are the slower ones of
torch, which a warning says.
"""

import warnings

from torch import Tensor, nn

from phiscope.attention import find_paging_obstacle
from phiscope.cache import DecodeCache
from phiscope.errors import UnsupportedError
from phiscope.fused import FusedBlocks
from phiscope.kernels import build, calls, triton_check
from phiscope.model import (
    ACTIVATIONS,
    MLP,
    Attention,
    Pass,
    PhiForCausalLM,
    place_in_steps,
)
from phiscope.quantized import quantize
from phiscope.runtime import Mode, keep_freed_memory
from phiscope.streamed import (
    StreamedLinear,
    StreamedNorm,
    gelu_in_place,
    looks_between,
    place_in_slots,
    rotate_in_place,
)
from phiscope.weight_only import multiply_by_triton, round_weights
from phiscope.wide import widen


def prepare(model: PhiForCausalLM, mode: Mode) -> PhiForCausalLM:
    """The model in its mode, over the same weights or with integers in their place.

    Raises `UnsupportedError` if integers on a GPU lack their kernels.
    """
    if mode.device == "cuda":
        return _prepare_for_gpu(model, mode)
    if mode.weights is not None:
        quantize(model, mode.weights, wide=mode.has_wide_products)
    if mode.is_wide:
        model = widen(model)
    model.set_attention(mode.attention)
    if mode.device == "cpu" and build.find_obstacle() is None:
        _use_kernels(model)
    return model


def name_kernels(model: PhiForCausalLM) -> str | None:
    """The compiler of the kernels that a model was prepared to run; None without kernels."""
    uses = (m.rotate is rotate_in_place for m in model.modules() if isinstance(m, Attention))
    return build.name_compiler() if any(uses) else None


def _prepare_for_gpu(model: PhiForCausalLM, mode: Mode) -> PhiForCausalLM:
    obstacle = triton_check.find_obstacle()
    if mode.weights is not None:
        if obstacle is not None:
            raise UnsupportedError(f"mode {mode.name!r} needs Triton: {obstacle}")
        round_weights(model, mode.weights, multiply_by_triton)
    model.set_attention(mode.attention)
    decoding = choose_decode_attention(mode, obstacle)
    model.set_decode_attention(decoding)
    if obstacle is None:
        for module in model.modules():
            if isinstance(module, Attention):
                module.place = place_at_once
    else:
        warnings.warn(
            f"decoding uses {decoding} attention of torch, which is slower: {obstacle}",
            RuntimeWarning,
            stacklevel=3,
        )
    return model


def choose_decode_attention(mode: Mode, obstacle: str | None) -> str:
    """Our kernel, else torch's with pages, else the one that copies slots; `obstacle` is ours."""
    if obstacle is None:
        return "triton"
    can_page = mode.attention == "flash" and find_paging_obstacle() is None
    return "paged" if can_page else "masked"


def place_at_once(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor, run: Pass
) -> tuple[Tensor, Tensor, Tensor]:
    """`place_in_steps` by one kernel, where a step only decodes and nobody looks in between."""
    layer = attention.layer
    if looks_between(run, layer) or not isinstance(run.cache, DecodeCache):
        return place_in_steps(attention, q, k, v, run)
    from phiscope.kernels.triton_rotary import rotate_and_write

    keys, values = run.cache.data[layer]
    decodes = run.cache.packed
    where = (decodes.slot_ids, decodes.positions)
    rotate_and_write(q, k, v, (run.cos, run.sin), (keys, values), where)
    return q, keys, values


def _use_kernels(model: PhiForCausalLM) -> None:
    keep_freed_memory()
    model.model.run_blocks = FusedBlocks()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and calls.serves_linear(child.weight.dtype):
                setattr(module, name, StreamedLinear.of(child))
            if type(child) is nn.LayerNorm and calls.serves_linear(child.weight.dtype):
                setattr(module, name, StreamedNorm.of(child))
        if isinstance(module, Attention):
            module.rotate = rotate_in_place
            module.place = place_in_slots
        if isinstance(module, MLP) and module.activation is ACTIVATIONS["gelu_new"]:
            module.activation = gelu_in_place
