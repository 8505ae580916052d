"""The blocks of our transformers classes: Phi's, with the names of modules of layout D."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from phiscope.attention import Backend
from phiscope.config import PhiConfig as Shape
from phiscope.hf.padded import Attending, Batch
from phiscope.model import ACTIVATIONS, MLP, Attention
from phiscope.rotary import rotate

_GELU = partial(F.gelu, approximate="tanh")
_ACTIVATIONS: dict[
    str, Callable[[Tensor], Tensor]
] = {  # never in place: somebody's hook may hold the tensor
    **ACTIVATIONS,
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), _GELU),
}


@dataclass(frozen=True)
class Run:
    """What every block of one forward shares."""

    batch: Batch
    cos: Tensor  # (1, N, rotary_dim / 2) or (B, T, rotary_dim / 2)
    sin: Tensor
    cache: Any
    backend: Backend
    maps: dict[int, Tensor]

    def on(self, device: torch.device) -> "Run":
        """The same where a block of a model that is spread over devices lies."""
        if self.cos.device == device:
            return self
        return replace(self, cos=self.cos.to(device), sin=self.sin.to(device))


class PhiAttention(Attention):
    """Attention with q, k and v in three projections."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__(shape, layer)
        self.dropout = shape.attention_dropout

    def _add_projections(self, hidden_size: int) -> None:
        queries, keys, values = (heads * self.head_dim for heads in self.heads)
        self.q_proj = nn.Linear(hidden_size, queries)
        self.k_proj = nn.Linear(hidden_size, keys)
        self.v_proj = nn.Linear(hidden_size, values)

    def _read_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in flat)
        return q, k, v

    def forward(self, hidden_states: Tensor, run: Run) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """What attention adds to the stream, and its maps (B, H, T, K) if they are wanted."""
        q, k, v = self._project(hidden_states)
        turned = rotate(torch.cat((q, k), dim=-2), run.cos, run.sin)
        q, k = torch.split(turned, list(self.heads[:2]), dim=-2)
        how = Attending(self.layer, run.backend, self.dropout if self.training else 0.0)
        z, maps = run.batch.attend(q, k, v, run.cache, how)
        return self.dense(z.flatten(-2)), maps


class PhiMLP(MLP):
    """Two linear layers with an activation between."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__(shape, layer)
        self.activation = _ACTIVATIONS[shape.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        output: Tensor = self.fc2(self.activation(self.fc1(hidden_states)))
        return output


class PhiDecoderLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)) + mlp(norm(x))."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.self_attn = PhiAttention(shape, layer)
        self.mlp = PhiMLP(shape, layer)
        self.input_layernorm = nn.LayerNorm(shape.hidden_size, shape.layer_norm_eps)
        self.resid_dropout = nn.Dropout(shape.resid_pdrop)

    def forward(self, hidden_states: Tensor, run: Run) -> Tensor:
        """The stream after the block; maps of the attention are left in `run.maps`."""
        run = run.on(hidden_states.device)
        normed = self.input_layernorm(hidden_states)
        attn_out, maps = self.self_attn(normed, run)
        if maps is not None:
            run.maps[self.self_attn.layer] = maps
        mlp_out = self.mlp(normed)
        x: Tensor = self.resid_dropout(attn_out) + self.resid_dropout(mlp_out) + hidden_states
        return x
