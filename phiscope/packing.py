"""Packed: many sequences as one flat run of tokens, the native form of a batch.

Token `offsets[i] + t` is the t-th new token of sequence i. Before it may stand `starts[i]` tokens
whose keys are known: in a cache slot, or, without slots, in a prefix that sequences share. Padding
does not exist.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise, repeat, starmap
from typing import SupportsIndex

import torch
from torch import Tensor

from phiscope.config import PhiConfig


@dataclass(frozen=True, eq=False)
class Packed:
    """Where each of S sequences lies in a flat run of N tokens. Make one with `pack_lengths`."""

    lengths: tuple[int, ...]
    """New tokens of each sequence, all at least 1."""
    starts: tuple[int, ...]
    """Tokens before each sequence's new ones, whose keys and values are known."""
    slots: tuple[int, ...] | None
    """Cache slot of each sequence; None where there are no slots."""
    positions: Tensor
    """(N,) int64: the place of each token in its own sequence."""

    @property
    def num_tokens(self) -> int:
        return self.offsets[-1]

    @property
    def num_sequences(self) -> int:
        return len(self.lengths)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """S + 1 borders: sequence i holds tokens offsets[i] to offsets[i + 1]."""
        return tuple(accumulate(self.lengths, initial=0))

    @cached_property
    def key_lengths(self) -> tuple[int, ...]:
        """Tokens each sequence attends to: those before it and the new ones."""
        return tuple(s + n for s, n in zip(self.starts, self.lengths, strict=True))

    @cached_property
    def is_even(self) -> bool:
        """Whether all sequences are new and equally long, so that they form a (S, T) matrix."""
        return self.slots is None and not any(self.starts) and len(set(self.lengths)) == 1

    @cached_property
    def token_slots(self) -> Tensor:
        """(N,) int64: the cache slot of each token."""
        assert self.slots is not None, "a batch without a cache has no slots"
        return _spread(self.slots, self.lengths, self.positions.device)

    @cached_property
    def token_sequences(self) -> Tensor:
        """(N,) int64: the sequence of each token."""
        return _spread(range(self.num_sequences), self.lengths, self.positions.device)

    @cached_property
    def last_rows(self) -> Tensor:
        """(S,) int64: the row of each sequence's last token."""
        return _integers((end - 1 for end in self.offsets[1:]), self.positions.device)

    def spans(self) -> Iterator[slice]:
        """The rows of each sequence, in order."""
        return starmap(slice, pairwise(self.offsets))

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """(S + 1,) int32: borders of the new tokens, as variable-length kernels want them."""
        return _integers(self.offsets, self.positions.device, torch.int32)

    @cached_property
    def cu_seqlens_k(self) -> Tensor:
        """(S + 1,) int32: borders of the keys."""
        borders = accumulate(self.key_lengths, initial=0)
        return _integers(borders, self.positions.device, torch.int32)


@dataclass(frozen=True, eq=False)
class Decodes(Packed):
    """One new token for each of S sequences in cache slots, which only the device knows.

    `positions` and `slot_ids` are buffers that are filled anew for every forward, so that a forward
    can be recorded once. Here on the host, `starts` are the most tokens there may be before.
    """

    slot_ids: Tensor
    """(S,) int64: the cache slot of each sequence."""

    @property
    def num_places(self) -> int:
        """Tokens that a sequence has at most, the new one included."""
        return self.starts[0] + 1


def make_decodes(slot_ids: Tensor, positions: Tensor, num_places: int) -> Decodes:
    """A batch over these buffers (S,) int64, of sequences of at most `num_places` tokens."""
    count = len(slot_ids)
    return Decodes((1,) * count, (num_places - 1,) * count, None, positions, slot_ids)


def pack_lengths(
    lengths: Sequence[int],
    *,
    starts: Sequence[int] | None = None,
    slots: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Packed:
    """Lay out sequences of these lengths, behind `starts` tokens in cache `slots` or in a prefix.

    Raises `ValueError` for an empty batch, an empty sequence, a negative start, or a slot named
    twice.
    """
    starts = [0] * len(lengths) if starts is None else list(starts)
    _check(lengths, starts, slots)
    places = chain.from_iterable(range(s, s + n) for s, n in zip(starts, lengths, strict=True))
    positions = _integers(places, device)
    return Packed(tuple(lengths), tuple(starts), None if slots is None else tuple(slots), positions)


def pack(
    sequences: Sequence[Sequence[int]], *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Packed]:
    """Lay token sequences end to end: ids (N,) int64, and their packing."""
    packed = pack_lengths([len(sequence) for sequence in sequences], device=device)
    return _integers(chain.from_iterable(sequences), device), packed


def read_tokens(prompt: Sequence[int] | Tensor, config: PhiConfig) -> list[int] | Tensor:
    """Token ids as ints, or embeddings (T, hidden) as they are.

    Raises `ValueError` for what this model cannot read, and `TypeError` for what is no integer.
    """
    if isinstance(prompt, Tensor):
        if prompt.is_floating_point():
            return _checked_embeddings(prompt, config.hidden_size)
        if prompt.ndim != 1 or prompt.dtype == torch.bool:
            raise ValueError(
                f"token ids are integers (T,), got {prompt.dtype} {tuple(prompt.shape)}"
            )
        prompt = prompt.tolist()
    ids = [_as_integer(token_id) for token_id in prompt]
    if not ids:
        raise ValueError("the prompt has no tokens; begin an empty text with the end token")
    wrong = next((i for i in ids if not 0 <= i < config.vocab_size), None)
    if wrong is not None:
        raise ValueError(
            f"token id {wrong} at place {ids.index(wrong)} of the prompt is not one of the"
            f" model's 0 to {config.vocab_size - 1}"
        )
    return ids


def plan_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group rows, longest first, into batches of at most `token_budget` tokens.

    There are as few as filling one after the other gives, and they are about equally large: a last
    batch of a few tokens would read all weights for them. A row longer than the budget has a batch
    of its own. The result depends on the lengths alone.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {token_budget}")
    batches = _fill_batches(lengths, token_budget)
    least = -(-sum(lengths) // max(1, len(batches)))
    step = max(1, token_budget // 32)
    for budget in range(least, token_budget, step):
        even = _fill_batches(lengths, budget)
        if len(even) == len(batches):
            return even
    return batches


def _fill_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    room = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if not batches or lengths[row] > room:
            batches.append([])
            room = token_budget
        batches[-1].append(row)
        room -= lengths[row]
    return batches


def _check(lengths: Sequence[int], starts: Sequence[int], slots: Sequence[int] | None) -> None:
    if not lengths:
        raise ValueError("a batch needs at least one sequence")
    if min(lengths) < 1:
        raise ValueError(f"sequence {lengths.index(min(lengths))} of the batch has no tokens")
    if len(starts) != len(lengths) or min(starts) < 0:
        raise ValueError(f"{len(lengths)} sequences need as many starts >= 0, got {starts}")
    if slots is not None and not len(slots) == len(lengths) == len(set(slots)):
        raise ValueError(f"{len(lengths)} sequences need as many different slots, got {slots}")


def _checked_embeddings(prompt: Tensor, hidden: int) -> Tensor:
    if prompt.ndim != 2 or prompt.shape[1] != hidden or len(prompt) == 0:
        raise ValueError(
            f"prompt embeddings are (tokens, {hidden}) with one token at least,"
            f" got {tuple(prompt.shape)}"
        )
    return prompt


def _as_integer(token_id: SupportsIndex) -> int:
    try:
        return operator.index(token_id)
    except TypeError as error:
        raise TypeError(f"token ids are integers, got {token_id!r}") from error


def _spread(values: Iterable[int], lengths: Iterable[int], device: torch.device) -> Tensor:
    return _integers(chain.from_iterable(map(repeat, values, lengths)), device)


def _integers(
    values: Iterable[int], device: torch.device | str, dtype: torch.dtype = torch.int64
) -> Tensor:
    """A tensor that autograd may keep, also where it is first needed under inference mode."""
    with torch.inference_mode(False):
        return torch.tensor(list(values), dtype=dtype, device=device)
