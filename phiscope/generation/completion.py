"""Completion: what a request gives back, and CompletionJob, one that is on its way."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from phiscope.generation.drafting import Draft, DraftAsk
from phiscope.generation.logprobs import TokenLogprob
from phiscope.generation.sampling import SamplingState
from phiscope.generation.scheduler import Job
from phiscope.generation.stopping import CompletionText
from phiscope.generation.task import Task

FinishReason = Literal["stop", "length", "cancelled", "error"]
Rows = dict[str, list[Tensor]]
"""For each point, the rows of one step after another."""

_MAPS = {"attn_scores": float("-inf"), "attn_probs": 0.0}
"""Points that are maps (heads, T, K), and what stands where a query cannot look."""


class TokenLabel(NamedTuple):
    """Whose row of the states it is."""

    position: int
    token_id: int | None
    """None in a prompt of embeddings."""
    phase: Literal["prompt", "completion"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Completion:
    """One completion of a prompt."""

    index: int
    """Which of the n completions of the request."""
    text: str
    """Cut exactly where a stop string or rule ended it; after the prompt's text with `echo`."""
    token_ids: list[int]
    """Every token sampled: also the one that completed a stop string, or the end token."""
    finish_reason: FinishReason | None
    """None while the completion is on its way."""
    stop_reason: str | int | None
    """The stop string, token id or rule (its type's name) that ended it."""
    logprobs: list[TokenLogprob] | None
    """One for each of `token_ids`; None if they were not asked for."""
    prompt_logprobs: list[TokenLogprob] | None
    """One for each token of the prompt, with `echo` and `logprobs`."""
    states: dict[str, Tensor]
    """For each point asked for, one row for each token of prompt and completion: (T, ...), and for
    attention maps (heads, T, T)."""
    labels: list[TokenLabel]
    """What each row of the states belongs to."""
    num_drafted: int
    """Draft tokens that were run."""
    num_accepted: int
    """Those of them that are in the completion."""
    num_reused: int
    """Tokens of the prompt that were not run, for the cache held them from an earlier request."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What a stream gives: text that will not change any more, and the tokens since the last."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob]
    """Empty if they were not asked for."""
    finish_reason: FinishReason | None = None
    """Set in the last piece of a completion."""


@dataclass(eq=False, kw_only=True)
class CompletionJob(Job):
    """A completion on its way: its tokens, text and rows so far."""

    index: int
    task: Task
    num_ids: int
    """How many ids can be sampled."""
    device: torch.device
    text: CompletionText | None
    """None without a tokenizer."""
    untold: str = ""
    """Text to put before the first piece: the prompt's with `echo`."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    rows: Rows = field(default_factory=dict)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    draft: Draft = field(default_factory=Draft)
    """What the next step checks."""
    num_drafted: int = 0
    num_accepted: int = 0
    num_rows: int = 0
    """Tokens after the prompt whose rows are kept."""
    is_closed: bool = False
    """Whether nothing more will happen to it."""
    _num_told: int = 0

    @cached_property
    def sampling(self) -> SamplingState:
        """Made when the first token is due, for those that wait shall cost nothing."""
        return SamplingState(
            self.task.options,
            seed=self.task.seed,
            index=self.index,
            prompt_ids=self.task.prompt.ids or (),
            num_tokens=self.num_ids,
            device=self.device,
        )

    @property
    def has_ended(self) -> bool:
        """Whether its last token is chosen; with rows to keep, that token has yet to run."""
        return self.finish_reason is not None

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to run."""
        return self.has_ended and not (self.task.keeps_rows and self.num_pending)

    @property
    def known_ids(self) -> list[int]:
        """The ids of all known tokens; of a prompt of embeddings only those after it."""
        return [*(self.task.prompt.ids or ()), *self.token_ids]

    def reusable_ids(self) -> Sequence[int]:
        """The prompt but its last token, whose logits are needed; () if all of it must run."""
        if self.prefix_key is None or self.task.runs_whole_prompt:
            return ()
        return (self.task.prompt.ids or ())[:-1]

    def shared_ids(self) -> Sequence[int]:
        """The tokens in its slot, which any other prompt with the same edits may begin with.

        A token of the completion may be one of the prompt there: phases make a difference then.
        """
        if self.prefix_key is None or self.prefix_key != self.task.prefix_key:
            return ()
        end = min(self.num_cached, self.num_prompt) if self.task.has_phases else self.num_cached
        return self.known_ids[:end]

    def ask_draft(self) -> DraftAsk | None:
        """What to ask its drafter for; None if nothing is to be drafted for the next step."""
        left = self.task.options.max_new_tokens - len(self.token_ids) - 1
        num_wanted = min(self.task.num_draft_tokens, left)
        if self.slot is None or self.is_prefilling or self.has_ended or num_wanted < 1:
            return None
        return DraftAsk(
            token_ids=self.known_ids,
            num_wanted=num_wanted,
            slot=self.slot,
            sampling=self.sampling,
        )

    def propose(self, draft: Draft) -> None:
        """Let the next step check these tokens."""
        self.draft, self.num_draft = draft, len(draft.token_ids)

    def take(self, token_id: int, logprob: TokenLogprob | None) -> Piece | None:
        """Add the token chosen, decide whether it is the last, and give what is certain by now."""
        self.token_ids.append(token_id)
        self.num_tokens += 1
        self.sampling.add(token_id)
        if logprob is not None:
            self.logprobs.append(logprob)
        if token_id in self.task.stop_ids:
            return self.end("stop", token_id)
        text = self.text.push(token_id) if self.text else ""
        if self.text and self.text.has_stopped:
            return self.end("stop", self.text.stop_reason, text)
        if len(self.token_ids) == self.task.options.max_new_tokens:
            return self.end("length", None, text)
        return self._tell(text) if text or not self.text else None

    def end(self, reason: FinishReason, stop: str | int | None = None, text: str = "") -> Piece:
        """Let this be all, and give the last piece."""
        self.finish_reason, self.stop_reason = reason, stop
        text += self._finish_text()
        return self._tell(text)

    def abandon(self, reason: FinishReason) -> Piece:
        """End it from outside, as it is; nothing here can fail."""
        self.finish_reason = reason
        return self._tell(self.text.abandon() if self.text else "")

    def _finish_text(self) -> str:
        if self.text is None:
            return ""
        rest = self.text.finish()
        if self.text.has_stopped and self.finish_reason == "length":
            self.finish_reason, self.stop_reason = "stop", self.text.stop_reason
        return rest

    def _tell(self, text: str) -> Piece:
        since, self._num_told = self._num_told, len(self.token_ids)
        text, self.untold = self.untold + text, ""
        return Piece(
            index=self.index,
            text=text,
            token_ids=self.token_ids[since:],
            logprobs=self.logprobs[since:],
            finish_reason=self.finish_reason,
        )


def cut_rows(name: str, rows: Tensor, span: slice) -> Tensor:
    """The rows of some of a step's tokens as a copy: (T, ...), of maps (heads, T, K)."""
    if name.partition(".")[0] not in _MAPS:
        return rows[span].clone()
    num_later = rows.shape[1] - span.stop
    return rows[:, span, : rows.shape[-1] - num_later].clone()


def join_rows(name: str, rows: list[Tensor]) -> Tensor:
    """The rows of all steps as one tensor: (T, ...), of maps (heads, T, T)."""
    fill = _MAPS.get(name.partition(".")[0])
    if fill is None:
        return torch.cat(rows)
    width = rows[-1].shape[-1]
    wide = [F.pad(x, (0, width - x.shape[-1]), value=fill) for x in rows]
    return torch.cat(wide, dim=1)


def label_tokens(task: Task, token_ids: list[int]) -> list[TokenLabel]:
    """Labels of the prompt's tokens and of those after it."""
    num_prompt = len(task.prompt)
    prompt_ids: Sequence[int | None] = task.prompt.ids or [None] * num_prompt
    prompt = [TokenLabel(i, token_id, "prompt") for i, token_id in enumerate(prompt_ids)]
    places = enumerate(token_ids, num_prompt)
    return prompt + [TokenLabel(i, token_id, "completion") for i, token_id in places]
