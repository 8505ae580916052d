"""Phi as transformers has it, over the packed forward: padding is taken out, and put back.

Names of modules and parameters are those of today's transformers (layout D), so that whatever
knows its Phi by name knows this one.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import can_return_tuple, logging

from phiscope.attention import Backend, select_backend
from phiscope.errors import UnsupportedError
from phiscope.hf.adapters import AdapterNames
from phiscope.hf.arguments import (
    Given,
    check_mask,
    choose_states,
    is_everything_watched,
    is_watched,
    refuse_numbers,
    refuse_unknown,
)
from phiscope.hf.blocks import PhiDecoderLayer, Run
from phiscope.hf.configuration import PhiConfig, read_shape
from phiscope.hf.loading import CheckpointLoading
from phiscope.hf.padded import Batch, DenseBatch, pack_rows
from phiscope.hf.prepacking import Prepacking
from phiscope.hf.saving import CheckpointSaving
from phiscope.rotary import Frequencies, make_rotations, rotary_frequencies

logger = logging.get_logger(__name__)

BACKENDS = {  # transformers' names of attention: those of ours that serve them
    "eager": "eager",
    "sdpa": "sdpa",
    "flash_attention_2": "flash",
    "flash_attention_3": "flash",
    "flash_attention_4": "flash",
    "flex_attention": "flex",
}


class PhiPreTrainedModel(
    AdapterNames, Prepacking, CheckpointSaving, CheckpointLoading, PreTrainedModel
):
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
        scaling = shape.rope_scaling
        self._is_dynamic = scaling is not None and scaling.rope_type == "dynamic"
        self._kept_frequencies: dict[torch.device, Frequencies] = {}
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
        compute_padding: bool = False,
        **unknown: Any,
    ) -> BaseModelOutputWithPast:
        """Run ids (batch, tokens) or embeddings (batch, tokens, hidden).

        `hidden_states` are transformers' L + 1, of which numbers choose some, or the one tensor of
        `config.hidden_states_format`. What is put out at padding means nothing, unless
        `compute_padding` asks for transformers' values there. Raises `TypeError` for an argument
        that means nothing here.
        """
        refuse_unknown(unknown, position_ids)
        given = self._read(input_ids, inputs_embeds, attention_mask, position_ids)
        given = self._behind(given, self._open_cache(past_key_values, use_cache))
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        batch = None if output_attentions or compute_padding else self._pack(given)
        run = self._start(batch or self._spread(given, bool(output_attentions)), given)
        hidden, states = self._run_blocks(given.embeds, run, output_hidden_states)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=given.cache,
            hidden_states=states,
            attentions=tuple(run.maps[i] for i in sorted(run.maps)) if output_attentions else None,
        )

    def _read(
        self,
        ids: Tensor | None,
        embeds: Tensor | None,
        mask: Tensor | None,
        positions: Tensor | None,
    ) -> Given:
        if (ids is None) == (embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if not getattr(self.config, "is_causal", True):
            refuse_unknown({"is_causal": False})
        if positions is not None and positions.ndim == 1:
            positions = positions[None]
        return Given(self.embed_tokens(ids) if embeds is None else embeds, mask, positions)

    def _open_cache(self, given: Cache | None, use_cache: bool | None) -> Cache | None:
        if given is not None and not isinstance(given, Cache):
            raise ValueError(f"past_key_values is one of transformers' caches, not {type(given)}")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            if given is not None and given.get_seq_length():
                raise ValueError(
                    "gradient checkpointing computes again, and so cannot go on from a cache:"
                    " give no past_key_values, or turn it off"
                )
            if use_cache or given is not None:
                logger.warning_once("gradient checkpointing computes again and fills no cache")
            return None
        return DynamicCache(config=self.config) if given is None and use_cache else given

    def _behind(self, given: Given, cache: Cache | None) -> Given:
        """The same behind what a cache holds, with a mask that fits."""
        known = 0 if cache is None else cache.get_seq_length()
        if not torch.compiler.is_compiling():
            known = int(known)  # some caches count on the device
            growing = cache is None or not cache.is_compileable
            check_mask(given.mask, given.shape, known, growing)
        return replace(given, cache=cache, known=known)

    def _pack(self, given: Given) -> Batch | None:
        """Without padding, which nobody then computes or attends to; None where this cannot be."""
        if not self._can_pack(given):
            return None
        if given.cache is None or given.mask is not None:
            return pack_rows(given.mask, given.positions, given.embeds)
        if given.has_restarts():
            logger.warning_once(
                "position_ids start anew within a row, but with a cache each row is one sequence,"
                " as in transformers: for several give use_cache=False"
            )
        return pack_rows(None, None, given.embeds)

    def _can_pack(self, given: Given) -> bool:
        """Whether all keys are new and nothing needs to see the batch as it stands."""
        if torch.compiler.is_compiling() or given.known:
            return False
        if given.mask is not None and given.mask.ndim != 2:
            return False
        if self.training and self._shape.attention_dropout:
            return False
        watchable = (*self.layers.modules(), self.final_layernorm)
        return not (any(map(is_watched, watchable)) or is_everything_watched())

    def _spread(self, given: Given, wants_maps: bool) -> Batch:
        allowed = create_causal_mask(
            config=mask_config(self.config),
            inputs_embeds=given.embeds,
            attention_mask=given.mask,
            past_key_values=given.cache,
            position_ids=given.positions,
        )
        return DenseBatch(allowed, wants_maps)

    def _start(self, batch: Batch, given: Given) -> Run:
        places = given.places
        frequencies, factor = self._frequencies(given)
        positions = batch.arrange(places.expand(given.shape[0], -1))
        cos, sin = make_rotations(positions, (frequencies.to(places.device), factor))
        return Run(batch, cos, sin, given.cache, self._select_backend(), {})

    def _select_backend(self) -> Backend:
        name = self.config._attn_implementation
        if self.packed_attention is None and name not in BACKENDS:
            raise UnsupportedError(f"no attention {name!r} here; choose from {sorted(BACKENDS)}")
        return select_backend(self.packed_attention or BACKENDS[name])

    def _frequencies(self, given: Given) -> Frequencies:
        """Those of the context; beyond it a warning, and dynamic scaling where the config has it.

        How far positions reach is read where it matters only, for a GPU is waited for.
        """
        limit = self._shape.max_position_embeddings
        if torch.compiler.is_compiling():
            return self._trained_frequencies(given.embeds.device)
        is_unknown = given.positions is not None and self._is_dynamic
        if not is_unknown and given.known + given.shape[1] <= limit:
            return self._trained_frequencies(given.embeds.device)
        end = int(given.places.max()) + 1
        if end > limit:
            logger.warning_once(
                f"{end} tokens exceed the context of {limit}: the model was not trained for it"
            )
        return rotary_frequencies(self._shape, end)

    def _trained_frequencies(self, device: torch.device) -> Frequencies:
        """Kept where they are used: a compiled step with a tensor of the CPU has no CUDA graph."""
        if device in self._kept_frequencies:
            return self._kept_frequencies[device]
        if torch.compiler.is_compiling():
            return rotary_frequencies(self._shape)
        with torch.inference_mode(False):
            radians, factor = rotary_frequencies(self._shape)
            radians = radians.to(device)
        if type(radians) is Tensor and not radians.is_meta:
            self._kept_frequencies[device] = radians, factor
        return radians, factor

    def _run_blocks(
        self, inputs: Tensor, run: Run, wanted: bool | int | Sequence[int] | None
    ) -> tuple[Tensor, Any]:
        """The stream after the final norm, and the hidden states as they are wanted."""
        config, batch = self.config, run.batch
        wanted = config.output_hidden_states if wanted is None else wanted
        last, is_last_block = config.num_hidden_layers, config.hidden_states_format == "last_block"
        if is_last_block:
            refuse_numbers(wanted)
            wanted = None
        chosen = choose_states(wanted, last)
        states: list[Tensor | None] = []
        x = batch.arrange(self.embed_dropout(inputs))
        for index, block in enumerate(self.layers[:last]):
            x, state = _show(batch, x, index in chosen)
            states.append(state)
            x = block(x, run)
        x, final_stream = _show(batch, x, is_last_block)
        hidden = batch.restore(self.final_layernorm(x))
        states.append(hidden if last in chosen else None)
        return hidden, final_stream if is_last_block else tuple(states) if chosen else None


def mask_config(config: PhiConfig) -> PhiConfig:
    """The config with an attention for which transformers makes masks of four axes."""
    if config._attn_implementation in ("eager", "sdpa"):
        return config
    config = copy.copy(config)
    config._attn_implementation_internal = "sdpa"
    return config


def _show(batch: Batch, x: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """The stream, and a copy in the caller's shape; gradients of the one go through the other."""
    if not wanted:
        return x, None
    state = batch.restore(x)
    return (batch.arrange(state) if state.requires_grad else x), state
