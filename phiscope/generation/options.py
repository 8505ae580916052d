"""GenerationOptions: everything a caller may ask of one completion, checked where it is made."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from phiscope.stops import StopRule

MAX_SEED = 2**63


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """`temperature=0` is greedy. Names are those of Hugging Face's `GenerationConfig`.

    A wrong value is a `ValueError` (a wrong type a `TypeError`) here, before anything runs.
    """

    max_new_tokens: int = 128
    """0 samples nothing and needs `echo` and `logprobs`: it scores the prompt."""
    temperature: float = 0.0
    """Divides the logits; 0 takes the likeliest token and ignores top_k, top_p, min_p and seed."""
    top_k: int | None = None
    """Sample among the k likeliest tokens (and those that tie with the k-th)."""
    top_p: float | None = None
    """Sample among the fewest tokens whose probabilities add up to p."""
    min_p: float | None = None
    """Sample among tokens at least p times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or completion."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token that is in the completion so far."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit once for each time it is in the completion so far."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Added to the logits of these token ids; minus infinity bans a token."""
    seed: int | None = None
    """None draws a new one, which the request then tells."""
    n: int = 1
    """Completions of one prompt, each with a random stream of its own."""
    stop: tuple[str, ...] = ()
    """Strings that end the completion; they are not part of its text."""
    stop_token_ids: tuple[int, ...] | None = None
    """Token ids that end the completion; None: the end token of tokenizer or model."""
    stop_rules: tuple[StopRule, ...] = ()
    """Rules that end the completion by its text, as prompt formats bring them."""
    ignore_eos: bool = False
    """Go on after the end token."""
    logprobs: int | None = None
    """How many of the likeliest tokens to list beside each token's own log-probability."""
    draft_tokens: int | None = None
    """Tokens drafted for each step, where there is a draft; None: as many as is usual."""
    echo: bool = False
    """Put the prompt's text before the completion's; with `logprobs`, also score the prompt."""

    def __post_init__(self) -> None:
        self._freeze()
        for name, least in (
            ("max_new_tokens", 0),
            ("n", 1),
            ("top_k", 1),
            ("logprobs", 0),
            ("draft_tokens", 1),
        ):
            _check_count(name, getattr(self, name), least)
        for name, low, high in _RANGES:
            _check_number(name, getattr(self, name), low, high)
        self._check_positive()
        self._check_stops()
        self._check_bias()
        self._check_seed()
        self._check_together()

    @property
    def uses_counts(self) -> bool:
        """Whether a choice depends on the tokens before it by more than their logits."""
        return self.repetition_penalty != 1 or bool(self.presence_penalty or self.frequency_penalty)

    def _freeze(self) -> None:
        for name in ("stop", "stop_token_ids", "stop_rules"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"{name} is a tuple of strings, got a string: write ({value!r},)")
            if value is not None:
                object.__setattr__(self, name, _as_tuple(name, value))
        if not isinstance(self.logit_bias, Mapping):
            raise TypeError(f"logit_bias maps token ids to numbers, got {self.logit_bias!r}")
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))

    def _check_positive(self) -> None:
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def _check_stops(self) -> None:
        for stop in self.stop:
            if not isinstance(stop, str):
                raise TypeError(f"stop holds strings, got {stop!r}; ids belong in stop_token_ids")
            if not stop:
                raise ValueError("a stop string must not be empty")
        for token_id in self.stop_token_ids or ():
            _check_count("stop_token_ids", token_id, 0)

    def _check_bias(self) -> None:
        for token_id, bias in self.logit_bias.items():
            _check_count("a token id of logit_bias", token_id, 0)
            _check_number(f"logit_bias of token {token_id}", bias, -math.inf, math.inf)
            if bias == math.inf:
                raise ValueError(f"logit_bias of token {token_id} must be below infinity")

    def _check_seed(self) -> None:
        _check_count("seed", self.seed, 0)
        if self.seed is not None and self.seed >= MAX_SEED:
            raise ValueError(f"seed must be below {MAX_SEED}, got {self.seed}")

    def _check_together(self) -> None:
        for name in ("ignore_eos", "echo"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.max_new_tokens == 0 and not (self.echo and self.logprobs is not None):
            raise ValueError("max_new_tokens=0 only scores a prompt: set echo and logprobs as well")
        if self.max_new_tokens == 0 and self.n != 1:
            raise ValueError(f"max_new_tokens=0 samples nothing, so n must be 1, got {self.n}")


_RANGES = (
    ("temperature", 0.0, None),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.0, None),
    ("presence_penalty", None, None),
    ("frequency_penalty", None, None),
)
"""Name, least, most; None is any finite number. top_p and repetition_penalty are never 0."""


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a tuple, got {value!r}: write ({value!r},)")
    return tuple(value)


def _check_count(name: str, value: Any, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _check_number(name: str, value: Any, low: float | None, high: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if math.isnan(value) or (abs(value) == math.inf and math.inf not in (low, high)):
        raise ValueError(f"{name} must be a finite number, got {value}")
    if low is not None and value < low:
        raise ValueError(f"{name} must be at least {low:g}, got {value}")
    if high is not None and value > high:
        raise ValueError(f"{name} must be at most {high:g}, got {value}")
