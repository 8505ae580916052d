"""Phi as transformers has it, over the packed forward: padding is taken out, and put back.

Names of modules and parameters are those of today's transformers (layout D), so that whatever
knows its Phi by name knows this one.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import can_return_tuple, logging

from phiscope.attention import Backend, select_backend
from phiscope.config import PhiConfig as Shape
from phiscope.errors import UnsupportedError
from phiscope.hf.configuration import PhiConfig, read_shape
from phiscope.hf.loading import CheckpointLoading
from phiscope.hf.padded import Attending, Batch, DenseBatch, pack_rows
from phiscope.hf.saving import CheckpointSaving
from phiscope.model import ACTIVATIONS, MLP, Attention
from phiscope.rotary import Frequencies, make_rotations, rotary_frequencies, rotate

logger = logging.get_logger(__name__)

BACKENDS = {  # transformers' names of attention: those of ours that serve them
    "eager": "eager",
    "sdpa": "sdpa",
    "flash_attention_2": "flash",
    "flash_attention_3": "flash",
    "flash_attention_4": "flash",
    "flex_attention": "flex",
}
_GELU = partial(F.gelu, approximate="tanh")
_ACTIVATIONS: dict[
    str, Callable[[Tensor], Tensor]
] = {  # never in place: somebody's hook may hold the tensor
    **ACTIVATIONS,
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), _GELU),
}
_IGNORED = ("num_items_in_batch", "is_causal")
"""Arguments that change nothing here: what the loss is divided by, and what Phi is anyway."""


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
        q, k = rotate(q, run.cos, run.sin), rotate(k, run.cos, run.sin)
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


class PhiPreTrainedModel(CheckpointSaving, CheckpointLoading, PreTrainedModel):
    """What all our classes share: their config, their checkpoints, their attention."""

    config: PhiConfig
    config_class = PhiConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("PhiDecoderLayer",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True


class PhiModel(PhiPreTrainedModel):
    """Phi without a head: `last_hidden_state` is the stream after the final norm."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__(config)
        shape = read_shape(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size, self.padding_idx)
        self.embed_dropout = nn.Dropout(shape.embd_pdrop)
        self.layers = nn.ModuleList(
            PhiDecoderLayer(shape, layer) for layer in range(shape.num_hidden_layers)
        )
        self.final_layernorm = nn.LayerNorm(shape.hidden_size, shape.layer_norm_eps)
        self.gradient_checkpointing = False
        self.packed_attention: str | None = None
        """The attention backend of prompts; None: that of `config._attn_implementation`."""
        self._shape = shape
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        **unknown: Any,
    ) -> BaseModelOutputWithPast:
        """Run ids (batch, tokens) or embeddings (batch, tokens, hidden).

        `hidden_states` are transformers' L + 1, of which numbers choose some, or the one tensor of
        `config.hidden_states_format`. Outputs are zero where `attention_mask` (batch, tokens) is,
        unless they go on from a cache. Raises `TypeError` for an argument that means nothing here.
        """
        refuse_unknown(unknown)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        config = self.config
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        cache = self._open_cache(past_key_values, use_cache)
        wants_maps = config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if position_ids is not None and position_ids.ndim == 1:
            position_ids = position_ids[None]
        places = self._place(position_ids, inputs_embeds, cache)
        batch = self._arrange(inputs_embeds, attention_mask, position_ids, cache, bool(wants_maps))
        run = self._start(batch, places, cache, len(inputs_embeds))

        last = config.num_hidden_layers
        wanted = choose_states(output_hidden_states, last)
        is_last_block = config.hidden_states_format == "last_block"
        states: list[Tensor | None] = []
        x = batch.arrange(self.embed_dropout(inputs_embeds))
        for index, block in enumerate(self.layers[:last]):
            x, state = _show(batch, x, index in wanted)
            states.append(state)
            x = block(x, run)
        x, final_stream = _show(batch, x, is_last_block)
        hidden = batch.restore(self.final_layernorm(x))
        states.append(hidden if last in wanted else None)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=cache,
            hidden_states=final_stream if is_last_block else tuple(states) if wanted else None,
            attentions=tuple(run.maps[i] for i in range(last)) if wants_maps else None,
        )

    def _open_cache(self, given: Cache | None, use_cache: bool | None) -> Cache | None:
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and self.gradient_checkpointing and self.training:
            logger.warning_once("gradient checkpointing computes again and fills no cache")
            return None
        if given is not None and not isinstance(given, Cache):
            raise ValueError(f"past_key_values is one of transformers' caches, not {type(given)}")
        return DynamicCache(config=self.config) if given is None and use_cache else given

    def _place(self, given: Tensor | None, inputs: Tensor, cache: Cache | None) -> Tensor:
        """The position of every token, (B, T) or (1, T)."""
        if given is not None:
            return given
        known = 0 if cache is None else cache.get_seq_length()
        return (torch.arange(inputs.shape[1], device=inputs.device) + known)[None]

    def _arrange(
        self,
        inputs: Tensor,
        mask: Tensor | None,
        positions: Tensor | None,
        cache: Cache | None,
        wants_maps: bool,
    ) -> Batch:
        """Packed where it can be: nobody then computes, or attends to, padding."""
        is_plain = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
        if is_plain and not wants_maps and self._can_pack(cache):
            packed = pack_rows(mask, positions, inputs)
            if packed is not None:
                return packed
        config = self.config
        if config._attn_implementation not in ("eager", "sdpa"):
            config = copy.copy(config)
            config._attn_implementation_internal = "sdpa"
        allowed = create_causal_mask(
            config=config,
            inputs_embeds=inputs,
            attention_mask=mask,
            past_key_values=cache,
            position_ids=positions,
        )
        return DenseBatch(allowed, wants_maps)

    def _can_pack(self, cache: Cache | None) -> bool:
        """Whether all keys are new and nothing needs to see the batch as it stands."""
        if torch.compiler.is_compiling():
            return False
        if cache is not None and int(cache.get_seq_length()):
            return False
        if self.training and self._shape.attention_dropout:
            return False
        return not any(map(is_watched, self.layers.modules()))

    def _start(self, batch: Batch, places: Tensor, cache: Cache | None, num_rows: int) -> Run:
        known = 0 if cache is None else cache.get_seq_length()
        frequencies, factor = self._frequencies(places, known + places.shape[1])
        positions = batch.arrange(places.expand(num_rows, -1))
        cos, sin = make_rotations(positions, (frequencies.to(places.device), factor))
        name = self.packed_attention or BACKENDS[self.config._attn_implementation]
        return Run(batch, cos, sin, cache, select_backend(name), {})

    def _frequencies(self, places: Tensor, bound: int) -> Frequencies:
        """Those of the context; beyond it a warning, and dynamic scaling where the config has it.

        `bound` is at least the number of tokens, and known without waiting for a GPU.
        """
        limit = self._shape.max_position_embeddings
        if torch.compiler.is_compiling() or int(bound) <= limit:
            return rotary_frequencies(self._shape)
        end = int(places.max()) + 1
        if end > limit:
            logger.warning_once(
                f"{end} tokens exceed the context of {limit}: the model was not trained for it"
            )
        return rotary_frequencies(self._shape, end)


def choose_states(wanted: bool | int | Sequence[int] | None, last: int) -> set[int]:
    """Which of the states 0 to `last` are asked for; negative numbers count from the end."""
    if wanted is None or isinstance(wanted, bool):
        return set(range(last + 1)) if wanted else set()
    numbers = [wanted] if isinstance(wanted, int) else list(wanted)
    absent = [number for number in numbers if not -last - 1 <= number <= last]
    if absent:
        raise ValueError(f"hidden states are numbered 0 to {last}; there is no {absent[0]}")
    return {number % (last + 1) for number in numbers}


def is_watched(module: nn.Module) -> bool:
    """Whether somebody's hook sees what goes into a module, or comes out."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def refuse_unknown(arguments: Mapping[str, Any]) -> None:
    """Raise `TypeError` for an argument of a forward that would be ignored."""
    if arguments.get("is_causal") is False:
        raise UnsupportedError("Phi attends to what comes before only: is_causal=False is not its")
    unknown = [name for name in arguments if name not in _IGNORED and arguments[name] is not None]
    if unknown:
        raise TypeError(f"forward() has no argument {unknown[0]!r}, and nothing is ignored here")


def _show(batch: Batch, x: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """The stream, and a copy in the caller's shape; gradients of the one go through the other."""
    if not wanted:
        return x, None
    state = batch.restore(x)
    return (batch.arrange(state) if state.requires_grad else x), state
