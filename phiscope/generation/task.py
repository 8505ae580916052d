"""Task: what a request asks for, checked whole when it is submitted, before anything runs."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from phiscope.config import PhiConfig
from phiscope.errors import ContextLengthError
from phiscope.generation.drafting import DRAFT_TOKENS, Drafter
from phiscope.generation.options import GenerationOptions
from phiscope.packing import read_tokens
from phiscope.tokenizer import Tokenizer


class Inspect(Protocol):
    """What a request wants read and changed at the model's points.

    The engine only passes it on to the maker of plans; `phiscope.activations.Inspection` is one.
    """

    @property
    def points(self) -> Sequence[object]:
        """The points to keep a row of for every token; as strings they are names."""

    @property
    def prompt_length(self) -> int | None:
        """Tokens of the prompt, which divide the phases."""

    @property
    def fingerprint(self) -> str | None:
        """Of equal fingerprints, edits change the same tokens in the same way; None: unknown."""

    @property
    def has_phases(self) -> bool:
        """Whether some edit tells prompt and completion apart."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids, or embeddings (T, hidden) in their place."""

    ids: list[int] | None = None
    embeddings: Tensor | None = None

    def __len__(self) -> int:
        tokens = self.ids if self.embeddings is None else self.embeddings
        assert tokens is not None, "a prompt has ids or embeddings"
        return len(tokens)


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A prompt and what to do with it, known to be possible."""

    prompt: Prompt
    options: GenerationOptions
    stop_ids: frozenset[int]
    seed: int
    inspect: Inspect | None
    drafter: Drafter | None = None
    fingerprint: str | None = None
    """Of the edits, as they were when the request was made; None: unknown."""

    @property
    def num_draft_tokens(self) -> int:
        """How many tokens to draft for a step."""
        return (self.options.draft_tokens or DRAFT_TOKENS) if self.drafter else 0

    @property
    def prefix_key(self) -> str | None:
        """Of equal keys, one model gives equal tokens equal keys and values; None: unknown.

        Edits that have changed since are another's.
        """
        if self.prompt.ids is None or read_fingerprint(self.inspect) != self.fingerprint:
            return None
        return self.fingerprint

    @property
    def has_phases(self) -> bool:
        """Whether the completion's tokens are changed otherwise than the prompt's."""
        return self.inspect is not None and self.inspect.has_phases

    @property
    def runs_whole_prompt(self) -> bool:
        """Whether something of every token of the prompt is wanted."""
        return self.keeps_rows or self.scores_prompt

    @property
    def keeps_rows(self) -> bool:
        """Whether some point's row is kept for every token."""
        return self.inspect is not None and bool(self.inspect.points)

    @property
    def keeps_logits(self) -> bool:
        return self.inspect is not None and "logits" in map(str, self.inspect.points)

    @property
    def scores_prompt(self) -> bool:
        return self.options.echo and self.options.logprobs is not None


def read_fingerprint(inspect: Inspect | None) -> str | None:
    """The fingerprint of the edits as they are; "" where there are none."""
    return "" if inspect is None else inspect.fingerprint


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an engine can serve, and the checks of a request against it."""

    config: PhiConfig
    context: int
    num_tokens: int
    """Ids from here on are spare: allowed in a prompt, never sampled."""
    tokenizer: Tokenizer | None
    makes_plans: bool
    most_draft_tokens: int = 0
    """Of each completion in one step."""

    @property
    def eos_token_id(self) -> int:
        return (self.tokenizer or self.config).eos_token_id

    def make_task(
        self,
        prompt: Sequence[int] | Tensor,
        options: GenerationOptions,
        inspect: Inspect | None,
        drafter: Drafter | None = None,
    ) -> Task:
        """Check a request; `ValueError` (of a length `ContextLengthError`) says what is wrong."""
        checked = self._read_prompt(prompt)
        self._check_length(len(checked), options)
        self._check_ids(options)
        self._check_text(checked, options)
        self._check_inspect(len(checked), inspect)
        self._check_draft(checked, options, drafter)
        seed = random.SystemRandom().getrandbits(62) if options.seed is None else options.seed
        return Task(
            prompt=checked,
            options=options,
            stop_ids=self._stop_ids(options),
            seed=seed,
            inspect=inspect,
            drafter=drafter,
            fingerprint=read_fingerprint(inspect),
        )

    def _read_prompt(self, prompt: Sequence[int] | Tensor) -> Prompt:
        if isinstance(prompt, str):
            raise TypeError("a prompt is token ids or embeddings here; encode the text first")
        tokens = read_tokens(prompt, self.config)
        if isinstance(tokens, list):
            return Prompt(ids=tokens)
        if not bool(tokens.isfinite().all()):
            raise ValueError("the prompt embeddings have a NaN or an infinity")
        return Prompt(embeddings=tokens.detach().clone())

    def _check_length(self, num_prompt: int, options: GenerationOptions) -> None:
        total = num_prompt + options.max_new_tokens
        if total > self.context:
            raise ContextLengthError(
                f"{num_prompt} tokens of prompt and max_new_tokens={options.max_new_tokens} are"
                f" {total} tokens, which exceed the context of {self.context}"
            )

    def _check_ids(self, options: GenerationOptions) -> None:
        for what, ids in (
            ("logit_bias", options.logit_bias),
            ("stop_token_ids", options.stop_token_ids or ()),
        ):
            wrong = next((i for i in ids if i >= self.num_tokens), None)
            if wrong is not None:
                raise ValueError(
                    f"{what} names token {wrong}, but tokens are 0 to {self.num_tokens - 1}"
                )
        if (options.logprobs or 0) > self.num_tokens:
            raise ValueError(f"logprobs must be at most {self.num_tokens}, got {options.logprobs}")
        banned = sum(bias == float("-inf") for bias in options.logit_bias.values())
        if banned == self.num_tokens:
            raise ValueError("logit_bias bans all tokens, so that none is left to sample")

    def _check_text(self, prompt: Prompt, options: GenerationOptions) -> None:
        if self.tokenizer is None and (options.stop or options.stop_rules):
            raise ValueError("stop strings and rules need a tokenizer; use stop_token_ids")
        if prompt.ids is None and options.echo:
            raise ValueError("a prompt of embeddings has no text or logprobs to echo")

    def _check_inspect(self, num_prompt: int, inspect: Inspect | None) -> None:
        if inspect is None:
            return
        if not self.makes_plans:
            raise ValueError("this engine was made without make_plan, so it cannot inspect")
        if inspect.prompt_length not in (None, num_prompt):
            raise ValueError(
                f"the inspection is for a prompt of {inspect.prompt_length} tokens,"
                f" and this one has {num_prompt}"
            )

    def _check_draft(
        self, prompt: Prompt, options: GenerationOptions, drafter: Drafter | None
    ) -> None:
        if drafter is None:
            if options.draft_tokens is not None:
                raise ValueError(f"draft_tokens={options.draft_tokens} needs a draft to take from")
            return
        if prompt.ids is None:
            raise ValueError("a prompt of embeddings has no tokens to draft from")
        num_tokens = options.draft_tokens or DRAFT_TOKENS
        if num_tokens > self.most_draft_tokens:
            raise ValueError(
                f"draft_tokens must be at most {self.most_draft_tokens}, got {num_tokens}: a step"
                " has to have room for those of every slot"
            )

    def _stop_ids(self, options: GenerationOptions) -> frozenset[int]:
        ids = options.stop_token_ids
        chosen = frozenset((self.eos_token_id,) if ids is None else ids)
        return chosen - {self.eos_token_id} if options.ignore_eos else chosen
