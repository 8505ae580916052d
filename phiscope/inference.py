"""Making a loaded model ready to run in its mode, with the kernels that this machine can build.

Linear layers are replaced by ones that read their weights at the speed of memory where there are
few rows; attention to a cache and the rotation become kernels that take a whole batch in one call.
"""

import torch
from torch import Tensor, nn

from phiscope.kernels import build, calls
from phiscope.model import ACTIVATIONS, MLP, Attention, PhiForCausalLM
from phiscope.quantized import quantize
from phiscope.rotary import rotate
from phiscope.runtime import Mode
from phiscope.skeleton import NoInitialValues
from phiscope.wide import widen


class StreamedLinear(nn.Linear):
    """`nn.Linear` that leaves few rows to a kernel of ours, which reads the weight as it lies."""

    def forward(self, x: Tensor) -> Tensor:
        """(rows, in_features) to (rows, out_features)."""
        if len(x) > calls.FEW_ROWS or torch.is_grad_enabled():
            return super().forward(x)
        return calls.linear(x, self.weight, self.bias)


def prepare(model: PhiForCausalLM, mode: Mode) -> PhiForCausalLM:
    """The model in its mode, over the same weights or with integers in their place."""
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


def rotate_in_place(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotary.rotate` by a kernel, in place where no gradients are wanted."""
    return rotate(x, cos, sin) if torch.is_grad_enabled() else calls.rotate(x, cos, sin)


def gelu_in_place(x: Tensor) -> Tensor:
    """GELU by its tanh formula, by a kernel and in place where no gradients are wanted."""
    is_served = not torch.is_grad_enabled() and calls.serves_attention(x.dtype)
    return calls.gelu(x) if is_served and x.is_contiguous() else ACTIVATIONS["gelu_new"](x)


def _use_kernels(model: PhiForCausalLM) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and calls.serves_linear(child.weight.dtype):
                setattr(module, name, _stream(child))
        if isinstance(module, Attention):
            module.rotate = rotate_in_place
        if isinstance(module, MLP) and module.activation is ACTIVATIONS["gelu_new"]:
            module.activation = gelu_in_place


def _stream(linear: nn.Linear) -> StreamedLinear:
    has_bias = linear.bias is not None
    with torch.device("meta"), NoInitialValues():
        streamed = StreamedLinear(linear.in_features, linear.out_features, has_bias)
    streamed.weight, streamed.bias = linear.weight, linear.bias
    return streamed.train(linear.training)
