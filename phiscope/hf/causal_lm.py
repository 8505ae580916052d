"""Phi with its language-model head, which generates as transformers' models do."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from phiscope.hf.configuration import PhiConfig
from phiscope.hf.model import PhiModel, PhiPreTrainedModel, is_watched, refuse_unknown

_FOR_THE_LOSS = ("num_items_in_batch", "shift_labels", "ignore_index")


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
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (batch, tokens, vocab) of the last `logits_to_keep` tokens, or of all.

        `labels` (batch, tokens) are the input's own ids, shifted here; -100 counts nowhere. The
        other arguments are `PhiModel`'s. Logits of padding are zero unless gradients are wanted.
        """
        for_loss = {name: kwargs.pop(name) for name in _FOR_THE_LOSS if name in kwargs}
        refuse_unknown(kwargs)
        if for_loss and labels is None and for_loss.get("shift_labels") is None:
            for_loss = {}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        hidden = _keep(outputs.last_hidden_state, logits_to_keep)
        logits = self._head(hidden, attention_mask)
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

    def _head(self, hidden: Tensor, mask: Any) -> Tensor:
        """Logits (B, T, vocab), computed where there is no padding."""
        if not self._may_skip(hidden, mask):
            logits: Tensor = self.lm_head(hidden)
            return logits
        logits = hidden.new_zeros(*hidden.shape[:2], self.config.vocab_size)
        for row, kept in enumerate(mask.bool()):
            places = kept.nonzero()[:, 0]
            logits[row, places] = self.lm_head(hidden[row, places])
        return logits

    def _may_skip(self, hidden: Tensor, mask: Any) -> bool:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_watched(self.lm_head):
            return False
        if not isinstance(mask, Tensor) or mask.shape != hidden.shape[:2]:
            return False
        return hidden.shape[1] > 1 and not bool(mask.all())


def _keep(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The tokens whose logits are wanted: the last few, or those at these places; 0 is all."""
    if isinstance(logits_to_keep, int):
        return hidden[:, -logits_to_keep:] if logits_to_keep else hidden
    return hidden[:, logits_to_keep]
