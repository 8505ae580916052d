"""Narrow weights, wide arithmetic: weights stay bf16 or fp16 in memory and all sums are fp32.

The model then computes as an fp32 model with the same weights would, in half of its memory. On CPUs
without matrix units for bf16 (AMX) fp32 products are nearly twice as fast as bf16 ones. A kernel
widens weights while they are in the cache; without it each weight is widened before its
product into a scratch buffer that all layers share, which costs a few percent.
"""

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phiscope.errors import UnsupportedError
from phiscope.kernels import build, calls
from phiscope.model import PhiForCausalLM
from phiscope.quantized import FORMATS, QuantizedLinear
from phiscope.skeleton import make_skeleton

_FEW_TOKENS = 64
"""Up to so many rows a weight is widened piece by piece, so that the pieces stay in cache."""
_PIECE = 256


class Scratch(threading.local):
    """One buffer for each thread, as large as the largest weight seen."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def widen(self, weight: Tensor) -> Tensor:
        """A copy of the weight in fp32, valid until the next call."""
        if self._buffer.numel() < weight.numel() or self._buffer.device != weight.device:
            with torch.inference_mode(False):  # forwards outside of it write here, too
                self._buffer = torch.empty(weight.numel(), device=weight.device)
        return self._buffer[: weight.numel()].view(weight.shape).copy_(weight)


class WideLinear(nn.Module):
    """`nn.Linear` in fp32 on a narrow weight, through which gradients pass to what lies before."""

    def __init__(self, linear: nn.Linear, scratch: Scratch) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self._scratch = scratch

    def forward(self, x: Tensor) -> Tensor:
        """(rows, in_features) fp32 to (rows, out_features) fp32."""
        if _wants_gradients(x, self.weight, self.bias):
            return _differentiate(x, self)
        with torch.no_grad():
            return self.multiply(x)

    def multiply(self, x: Tensor) -> Tensor:
        """The product, without gradients."""
        if _has_kernels(self.weight):
            product = calls.linear if len(x) <= calls.FEW_ROWS else calls.linear_wide
            return product(x, self.weight, self.bias)
        if len(x) > _FEW_TOKENS:
            return self._apply_piece(x, self.weight, self.bias)
        weights, biases = torch.split(self.weight, _PIECE), torch.split(self.bias, _PIECE)
        pieces = zip(weights, biases, strict=True)
        return torch.cat([self._apply_piece(x, w, b) for w, b in pieces], dim=-1)

    def multiply_back(self, gradient: Tensor) -> Tensor:
        """The gradient of x for that of the product."""
        return gradient @ self._scratch.widen(self.weight)

    def _apply_piece(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, self._scratch.widen(weight), bias.float())


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: WideLinear) -> Tensor:
        ctx.linear = linear
        return linear.multiply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.linear.multiply_back(gradients[0]), None


def _differentiate(x: Tensor, linear: WideLinear) -> Tensor:
    if _wants_gradients(linear.weight, linear.bias):
        raise UnsupportedError(
            "narrow weights with fp32 arithmetic take no gradients of their own; train in fp32 or"
            " bf16, or freeze them with model.requires_grad_(False)"
        )
    y: Tensor = _Product.apply(x, linear)  # type: ignore[no-untyped-call]
    return y


class WideEmbedding(nn.Module):
    """`nn.Embedding` that gives fp32 rows of a narrow table."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).float()


class WideNorm(nn.Module):
    """`nn.LayerNorm` in fp32 on narrow parameters."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.normalized_shape = norm.normalized_shape
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        if _has_kernels(self.weight) and not _wants_gradients(x, self.weight, self.bias):
            return calls.layer_norm(x, self.weight, self.bias, self.eps)
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def widen(model: PhiForCausalLM, *, products: bool = False) -> PhiForCausalLM:
    """A model over the same weights, shared and not copied, with fp32 arithmetic and sdpa.

    Integer weights go on rounding activations, unless `products` are to be wide, too.
    """
    layers = None if model.lm_head is not None else len(model.model.layers)
    wide = make_skeleton(model.config, layers)
    scratch = Scratch()
    wide.model.sources = model.model.sources
    for name, module in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        widened = _widened(module, scratch)
        if products and isinstance(widened, QuantizedLinear):
            widened = widened.widened()
        if widened is not None:
            setattr(wide.get_submodule(parent), child, widened)
    return wide.eval()


def name_arithmetic(model: PhiForCausalLM) -> str:
    """What products are computed in: a dtype's name, or "int8" where activations are rounded."""
    is_rounded = any(isinstance(m, QuantizedLinear) and not m.wide for m in model.modules())
    return "int8" if is_rounded else str(model.model.hidden_dtype).removeprefix("torch.")


def name_weights(model: PhiForCausalLM) -> str:
    """What linear layers' weights are: a dtype's name, or a format of integers."""
    kinds = (type(module) for module in model.modules())
    formats = [name for kind in kinds for name, format in FORMATS.items() if kind is format]
    dtype = model.model.embed_tokens.weight.dtype
    return formats[0] if formats else str(dtype).removeprefix("torch.")


def count_scratch_bytes(model: PhiForCausalLM) -> int:
    """What the largest weight takes while it is widened."""
    sizes = [4 * m.weight.numel() for m in model.modules() if isinstance(m, WideLinear)]
    sizes += [m.scratch_bytes for m in model.modules() if isinstance(m, QuantizedLinear)]
    return max(sizes, default=0)


def _wants_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _has_kernels(weight: Tensor) -> bool:
    is_served = weight.device.type == "cpu" and calls.serves_linear(weight.dtype, torch.float32)
    return is_served and build.find_obstacle() is None


def _widened(module: nn.Module, scratch: Scratch) -> nn.Module | None:
    """What stands in for a module with weights; None for one without."""
    if isinstance(module, QuantizedLinear):
        return module
    if isinstance(module, nn.Linear | WideLinear):
        return WideLinear(module, scratch)  # type: ignore[arg-type]
    if isinstance(module, nn.Embedding | WideEmbedding):
        return WideEmbedding(module)  # type: ignore[arg-type]
    if isinstance(module, nn.LayerNorm | WideNorm):
        return WideNorm(module)  # type: ignore[arg-type]
    return None
