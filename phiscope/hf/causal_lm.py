"""Phi with its language-model head, which generates as transformers' models do."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, GenerationMixin
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from phiscope.errors import UnsupportedError
from phiscope.hf.arguments import IGNORED, counts_padding, is_watched, refuse_unknown, select_tokens
from phiscope.hf.configuration import PhiConfig
from phiscope.hf.model import PhiModel, PhiPreTrainedModel, mask_config

_FOR_THE_LOSS = ("num_items_in_batch", "shift_labels", "ignore_index")
_OF_GENERATE = ("tokenizer", "assistant_tokenizer")
"""What `generate` reads itself, and then hands on to every forward."""
_TOKENS_AT_ONCE = 128
"""Whose logits are computed before they are put in their places."""


class PhiForCausalLM(PhiPreTrainedModel, GenerationMixin):
    """Phi with its head: logits of the next token, and everything `generate` does."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    _tp_plan: ClassVar[dict[str, str]] = {"lm_head": "colwise_gather_output"}
    _pp_plan: ClassVar[dict[str, Any]] = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan: ClassVar[dict[str, str]] = {"lm_head": "keep_full_weight"}

    def __init__(self, config: PhiConfig) -> None:
        super().__init__(config)
        self.model = PhiModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        compute_padding: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (batch, tokens, vocab) of all tokens, or of those `logits_to_keep` names.

        `labels` (batch, tokens) are the input's own ids, shifted here; -100 counts nowhere. The
        other arguments are `PhiModel`'s. Logits of padding mean nothing, unless `compute_padding`
        asks for them or `labels` count them.
        """
        for_loss = {name: kwargs.pop(name) for name in _FOR_THE_LOSS if name in kwargs}
        refuse_unknown(kwargs, position_ids)
        if labels is not None and _scores_padding(labels, attention_mask, for_loss):
            compute_padding = True
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            compute_padding=compute_padding,
            return_dict=True,
        )
        hidden = outputs.last_hidden_state
        mask = None if compute_padding else attention_mask
        if mask is not None and self._may_skip(hidden, mask, logits_to_keep):
            logits = self._skip_padding(hidden, mask)
        else:
            logits = self.lm_head(select_tokens(hidden, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **for_loss
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """transformers' inputs of one step; a prompt padded at the right ends in padding."""
        for name in _OF_GENERATE:
            kwargs.pop(name, None)
        kwargs |= {"inputs_embeds": inputs_embeds, "is_first_iteration": is_first_iteration}
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)
        mask = inputs.get("attention_mask")
        if is_first_iteration and isinstance(mask, Tensor) and mask.ndim == 2:
            inputs |= {} if bool(mask[:, -1].all()) else {"compute_padding": True}
        return inputs

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Raise `UnsupportedError`: what `generate_batch` keeps keys in is not read here."""
        raise UnsupportedError(
            "generate_batch needs transformers' paged cache, which these classes do not read: pad"
            " the prompts for generate, or use phiscope.load, whose engine batches continuously"
        )

    @staticmethod
    def create_masks_for_generate(config: PhiConfig, **kwargs: Any) -> Any:
        """transformers' masks for caches of a fixed size, of the kind that our forward takes."""
        return create_masks_for_generate(config=mask_config(config), **kwargs)

    def _may_skip(self, hidden: Tensor, mask: Tensor, logits_to_keep: int | Tensor) -> bool:
        """Whether all tokens' logits are wanted, and some tokens are padding."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_watched(self.lm_head):
            return False
        wants_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
        if mask.shape != hidden.shape[:2]:
            return False
        return wants_all and hidden.shape[1] > 1 and not bool(mask.all())

    def _skip_padding(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, T, vocab), zero where there is padding."""
        flat = hidden.flatten(0, 1)
        parts = torch.split(mask.flatten().nonzero()[:, 0], _TOKENS_AT_ONCE)
        first: Tensor = self.lm_head(flat[parts[0]])
        logits = first.new_zeros(*mask.shape, self.config.vocab_size)
        logits.view(len(flat), -1)[parts[0]] = first
        for part in parts[1:]:
            logits.view(len(flat), -1)[part] = self.lm_head(flat[part])
        return logits


def _scores_padding(labels: Tensor, mask: Tensor | None, for_loss: Mapping[str, Any]) -> bool:
    """Whether the loss reads logits of padding, as it does where labels are the bare ids."""
    ignored = for_loss.get("ignore_index", IGNORED)
    targets = for_loss.get("shift_labels")
    if targets is None:
        targets = F.pad(labels, (0, 1), value=ignored)[..., 1:]
    return counts_padding(targets, mask, ignored)
