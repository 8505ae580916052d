"""Phi with a linear head for whole texts, or for each of their tokens."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_outputs import SequenceClassifierOutputWithPast, TokenClassifierOutput
from transformers.utils import can_return_tuple

from phiscope.hf.arguments import counts_padding, refuse_unknown
from phiscope.hf.configuration import PhiConfig
from phiscope.hf.model import PhiModel, PhiPreTrainedModel


class PhiClassifier(PhiPreTrainedModel, ABC):
    """What both classifiers share: the model, and what they are given."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = PhiModel(config)
        self._add_head(config)
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
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast | TokenClassifierOutput:
        """Scores (batch, labels) of texts, or (batch, tokens, labels) of their tokens.

        `attention_mask` says what is padding, and for a text's last token without it
        `config.pad_token_id` does; `ValueError` if several texts come with neither. The other
        arguments are `PhiModel`'s.
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
            compute_padding=self._reads_padding(labels, attention_mask),
            return_dict=True,
        )
        scores = self._score(outputs.last_hidden_state, input_ids, attention_mask)
        answer: SequenceClassifierOutputWithPast | TokenClassifierOutput
        answer = self._answer(outputs, scores, labels)
        return answer

    @abstractmethod
    def _add_head(self, config: PhiConfig) -> None:
        """The modules behind the model."""

    @abstractmethod
    def _score(self, hidden: Tensor, ids: Tensor | None, mask: Any) -> Tensor:
        """Scores of what stands at hidden (B, T, hidden)."""

    @abstractmethod
    def _answer(self, outputs: Any, scores: Tensor, labels: Tensor | None) -> Any:
        """What transformers gives for such a head, with the loss if there are labels."""

    def _reads_padding(self, labels: Tensor | None, mask: Any) -> bool:
        """Whether scores of padding are part of what is wanted."""
        return False


class PhiForSequenceClassification(PhiClassifier):
    """Scores a text by its last token that is no padding."""

    def _add_head(self, config: PhiConfig) -> None:
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)

    def _score(self, hidden: Tensor, ids: Tensor | None, mask: Any) -> Tensor:
        rows = torch.arange(len(hidden), device=hidden.device)
        scores: Tensor = self.score(hidden[rows, self._find_last(hidden, ids, mask)])
        return scores

    def _answer(self, outputs: Any, scores: Tensor, labels: Tensor | None) -> Any:
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
        elif ids is not None and self.config.pad_token_id is not None:
            kept = (ids != self.config.pad_token_id).to(hidden.device)
        elif size == 1:
            return places[-1:]
        else:
            raise ValueError(
                "several texts need an attention_mask, or token ids and config.pad_token_id, for"
                " their last tokens to be found"
            )
        last: Tensor = (places * kept).argmax(dim=1)
        return last


class PhiForTokenClassification(PhiClassifier):
    """Scores every token of a text."""

    def _add_head(self, config: PhiConfig) -> None:
        given = getattr(config, "classifier_dropout", None)
        self.dropout = nn.Dropout(0.1 if given is None else given)
        self.score = nn.Linear(config.hidden_size, config.num_labels)

    def _score(self, hidden: Tensor, ids: Tensor | None, mask: Any) -> Tensor:
        scores: Tensor = self.score(self.dropout(hidden))
        return scores

    def _answer(self, outputs: Any, scores: Tensor, labels: Tensor | None) -> Any:
        loss = None if labels is None else self.loss_function(scores, labels, self.config)
        return TokenClassifierOutput(
            loss=loss,
            logits=scores,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _reads_padding(self, labels: Tensor | None, mask: Any) -> bool:
        return labels is not None and counts_padding(labels, mask)
