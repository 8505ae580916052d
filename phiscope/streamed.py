"""What stands in for torch's layers and for steps of the model where our kernels run on a CPU.

Weights are shared with the layers they stand in for. Where gradients are wanted, torch computes.
"""

import torch
from torch import Tensor, nn

from phiscope.cache import KVCache, list_places
from phiscope.kernels import calls
from phiscope.model import ACTIVATIONS, Attention, Pass, place_in_steps
from phiscope.rotary import rotate
from phiscope.skeleton import NoInitialValues


class StreamedLinear(nn.Linear):
    """`nn.Linear` that leaves few rows to a kernel, which reads the weight once."""

    @classmethod
    def of(cls, linear: nn.Linear) -> "StreamedLinear":
        """Over the same parameters."""
        has_bias = linear.bias is not None
        with torch.device("meta"), NoInitialValues():
            streamed = cls(linear.in_features, linear.out_features, has_bias)
        streamed.weight, streamed.bias = linear.weight, linear.bias
        return streamed.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, in_features) to (rows, out_features)."""
        if len(x) > calls.FEW_ROWS or torch.is_grad_enabled():
            return super().forward(x)
        return calls.linear(x, self.weight, self.bias)


class StreamedNorm(nn.LayerNorm):
    """`nn.LayerNorm` by a kernel."""

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> "StreamedNorm":
        """Over the same parameters."""
        with torch.device("meta"), NoInitialValues():
            streamed = cls(norm.normalized_shape, norm.eps)
        streamed.weight, streamed.bias = norm.weight, norm.bias
        return streamed.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, width) to the same."""
        if torch.is_grad_enabled():
            return super().forward(x)
        return calls.layer_norm(x, self.weight, self.bias, self.eps)


def place_in_slots(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor, run: Pass
) -> tuple[Tensor, Tensor, Tensor]:
    """`place_in_steps` by one kernel, where nobody looks in between."""
    layer, cache = attention.layer, run.cache
    is_served = not torch.is_grad_enabled() and calls.serves_attention(q.dtype)
    takes_them = type(cache) is KVCache and cache.data.dtype == q.dtype
    is_ours = attention.rotate is rotate_in_place
    if not (is_served and takes_them and is_ours) or looks_between(run, layer):
        return place_in_steps(attention, q, k, v, run)
    assert isinstance(cache, KVCache)
    places = list_places(run.packed, cache.num_places)
    q, _ = calls.place(q, k, v, (run.cos, run.sin), cache.layers[layer], places)
    return q, *cache.layers[layer]


def looks_between(run: Pass, layer: int) -> bool:
    """Whether a plan reads or changes what rotation gives."""
    plan = run.plan
    return plan is not None and (plan.wants("q_rot", layer) or plan.wants("k_rot", layer))


def rotate_in_place(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotary.rotate` by a kernel, in place where no gradients are wanted."""
    is_served = not torch.is_grad_enabled() and calls.serves_attention(x.dtype)
    return calls.rotate(x, cos, sin) if is_served else rotate(x, cos, sin)


def gelu_in_place(x: Tensor) -> Tensor:
    """GELU by its tanh formula, by a kernel and in place where no gradients are wanted."""
    is_served = not torch.is_grad_enabled() and calls.serves_attention(x.dtype)
    return calls.gelu(x) if is_served and x.is_contiguous() else ACTIVATIONS["gelu_new"](x)
