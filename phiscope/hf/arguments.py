"""What a forward's arguments say, checked: nothing that is given is ignored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from transformers import Cache

from phiscope.errors import UnsupportedError

IGNORED = -100
"""The label that counts nowhere."""
_UNUSED = ("num_items_in_batch", "is_causal")
"""Arguments that change nothing here: what the loss is divided by, and what Phi is anyway."""
_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Where packed sequences begin and end, which collators say beside `position_ids`."""


@dataclass(frozen=True)
class Given:
    """What a forward was given, read."""

    embeds: Tensor  # (B, T, hidden)
    mask: Tensor | None
    positions: Tensor | None  # (B, T) or (1, T)
    cache: Cache | None = None
    known: Any = 0
    """Tokens in the cache; a tensor where the compiler sees one."""

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.embeds.shape[0], self.embeds.shape[1]

    @property
    def places(self) -> Tensor:
        """The position of every token, (B, T) or (1, T)."""
        if self.positions is not None:
            return self.positions
        places: Tensor = torch.arange(self.shape[1], device=self.embeds.device) + self.known
        return places[None]

    def has_restarts(self) -> bool:
        """Whether given positions do not always count on within a row."""
        return self.positions is not None and bool((self.positions.diff(dim=1) != 1).any())


def refuse_unknown(arguments: Mapping[str, Any], positions: Tensor | None = None) -> None:
    """Raise `TypeError` for an argument of a forward that would be ignored."""
    if arguments.get("is_causal") is False:
        raise UnsupportedError("Phi attends to what comes before only: is_causal=False is not its")
    known = (*_UNUSED, *(_BOUNDS if positions is not None else ()))
    unknown = [name for name in arguments if name not in known and arguments[name] is not None]
    if unknown and unknown[0] in _BOUNDS:
        raise TypeError(f"{unknown[0]} takes position_ids that start anew with each sequence")
    if unknown:
        raise TypeError(f"forward() has no argument {unknown[0]!r}, and nothing is ignored here")
    bounds = arguments.get("cu_seq_lens_q")
    if bounds is not None and positions is not None and not torch.compiler.is_compiling():
        _check_bounds(bounds, positions)


def _check_bounds(bounds: Tensor, positions: Tensor) -> None:
    """Raise `ValueError` unless sequences end to end (N,) begin where their positions do."""
    begins = (positions.flatten().diff() != 1).nonzero()[:, 0] + 1
    if bounds[1:-1].tolist() != begins.tolist():
        raise ValueError("cu_seq_lens_q and position_ids differ in where sequences begin")


def choose_states(wanted: bool | int | Sequence[int] | None, last: int) -> set[int]:
    """Which of the states 0 to `last` are asked for; negative numbers count from the end."""
    if wanted is None or isinstance(wanted, bool):
        return set(range(last + 1)) if wanted else set()
    numbers = [wanted] if isinstance(wanted, int) else list(wanted)
    absent = [number for number in numbers if not -last - 1 <= number <= last]
    if absent:
        raise ValueError(f"hidden states are numbered 0 to {last}; there is no {absent[0]}")
    return {number % (last + 1) for number in numbers}


def refuse_numbers(wanted: bool | int | Sequence[int] | None) -> None:
    """Raise `ValueError` for numbers of hidden states where the last block's is all there is."""
    if wanted is not None and not isinstance(wanted, bool):
        raise ValueError(
            f"output_hidden_states={wanted!r} chooses among transformers' states, but"
            " config.hidden_states_format is 'last_block', which is one tensor"
        )


def select_tokens(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The tokens of hidden (B, T, hidden) whose logits are wanted.

    They are the last few, of which 0 is all; those at places (P,) or (B, P); or those where a bool
    mask (B, T) is true, as (tokens, hidden).
    """
    if isinstance(logits_to_keep, int):
        return hidden[:, -logits_to_keep:] if logits_to_keep else hidden
    if logits_to_keep.ndim < 2:
        return hidden[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden[logits_to_keep]
    return hidden.take_along_dim(logits_to_keep[..., None], dim=1)


def check_mask(mask: Any, shape: tuple[int, int], known: int, growing: bool) -> None:
    """Raise for a mask that does not fit (B, T) new tokens behind `known` ones.

    A mask (B, K) may be longer where the cache is not `growing` and has places for more.
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask is a tensor (batch, tokens) or (batch, 1, tokens, keys), not {given}"
        )
    if mask.ndim == 4:
        _check_kind(mask)
        return
    wanted = known + shape[1]
    is_fit = mask.shape[1] == wanted if growing else mask.shape[1] >= wanted
    if mask.shape[0] != shape[0] or not is_fit:
        raise ValueError(
            f"{shape[0]} rows of {shape[1]} tokens behind {known} known ones take an"
            f" attention_mask {(shape[0], wanted)}, not {tuple(mask.shape)}"
        )


def _check_kind(mask: Tensor) -> None:
    """Numbers 0 and 1 would be added to the scores, and mask nothing."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(
            "an attention_mask of four axes is bool, or added to the scores: convert"
            f" {mask.dtype} with .bool()"
        )


def counts_padding(labels: Tensor, mask: Any, ignored: int = IGNORED) -> bool:
    """Whether a loss over labels (B, T), each at the token that is scored, counts padding too."""
    if torch.compiler.is_compiling() or not isinstance(mask, Tensor) or mask.shape != labels.shape:
        return False
    return bool(((labels != ignored) & ~mask.to(labels.device).bool()).any())


def is_watched(module: nn.Module) -> bool:
    """Whether somebody's hook sees what goes into a module, or comes out."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_everything_watched() -> bool:
    """Whether a hook is set on all modules that there are."""
    return bool(
        torch_modules._global_forward_hooks
        or torch_modules._global_forward_pre_hooks
        or torch_modules._global_backward_hooks
        or torch_modules._global_backward_pre_hooks
    )
