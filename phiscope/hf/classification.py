"""Phi with a linear head for whole texts, or for each of their tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GenericForTokenClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.utils import can_return_tuple

from phiscope.hf.configuration import PhiConfig
from phiscope.hf.model import PhiModel, PhiPreTrainedModel, refuse_unknown


class PhiForSequenceClassification(PhiPreTrainedModel):
    """Scores a text by its last token that is no padding."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = PhiModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Scores (batch, labels). `attention_mask` says what is padding, and without it
        `config.pad_token_id` does; `ValueError` if several texts come with neither.
        """
        refuse_unknown(kwargs)
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
        hidden = outputs.last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        scores = self.score(hidden[rows, self._find_last(hidden, input_ids, attention_mask)])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=scores, labels=labels, pooled_logits=scores, config=self.config
            )
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=scores,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _find_last(self, hidden: Tensor, ids: Tensor | None, mask: Any) -> Tensor:
        """(batch,) int64: the place of each text's last token that is no padding."""
        size, width = hidden.shape[:2]
        places = torch.arange(width, device=hidden.device)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            kept = mask[:, -width:].to(hidden.device).bool()
        elif size == 1:
            return places[-1:]
        elif ids is None or self.config.pad_token_id is None:
            raise ValueError(
                "several texts need an attention_mask, or token ids and config.pad_token_id, for"
                " their last tokens to be found"
            )
        else:
            kept = ids != self.config.pad_token_id
        last: Tensor = (places * kept).argmax(dim=1)
        return last


class PhiForTokenClassification(GenericForTokenClassification, PhiPreTrainedModel):
    """Scores every token of a text."""
