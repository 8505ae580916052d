"""Between padded batches and the packed forward: where each token lies, and what it attends to.

Letters: B rows of T places as the caller has them, N tokens that are computed, K places with keys,
H heads, G key-value heads, D head_dim. A batch is computed in one of two forms, both with three
axes so that whoever hooks a module sees a batch, a token and a hidden axis:

* `PackedBatch`, (1, N, hidden): the tokens that are no padding, end to end;
* `DenseBatch`, (B, T, hidden): all places as they stand. It serves what needs them: tokens that go
  on from a cache, attention maps, masks of four axes, attention dropout, hooks, and the compiler.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from phiscope.attention import Backend, for_each_head, upcast
from phiscope.packing import Packed, pack_lengths

KeyValueCache = Any
"""transformers' `Cache`: `update(keys, values, layer)` takes and gives (B, G, places, D)."""


@dataclass(frozen=True)
class Attending:
    """What a layer brings to its attention."""

    layer: int
    backend: Backend
    dropout: float


class Batch(Protocol):
    """A batch in one of the two forms."""

    def arrange(self, x: Tensor) -> Tensor:
        """(B, T, ...) as the caller has it to the form that is computed."""

    def restore(self, x: Tensor) -> Tensor:
        """Back to (B, T, ...), with zeros where there is padding."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cache: KeyValueCache, how: Attending
    ) -> tuple[Tensor, Tensor | None]:
        """What the heads put out, shaped as q, and the maps (B, H, T, K) if they are wanted."""


@dataclass(frozen=True)
class PackedBatch:
    """New sequences without their padding."""

    packed: Packed
    shape: tuple[int, int]  # (B, T)
    rows: Tensor | None
    """(N,) int64: the place of each token among all B * T; None where there is no padding."""

    def arrange(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        return (flat if self.rows is None else flat[self.rows])[None]

    def restore(self, x: Tensor) -> Tensor:
        flat = x[0]
        if self.rows is not None:
            places = flat.new_zeros(self.shape[0] * self.shape[1], *flat.shape[1:])
            flat = places.index_copy_(0, self.rows, flat)
        return flat.view(*self.shape, *flat.shape[1:])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cache: KeyValueCache, how: Attending
    ) -> tuple[Tensor, None]:
        if cache is not None:
            keys, values = (self.restore(x).transpose(1, 2) for x in (k, v))
            cache.update(keys, values, how.layer)
        return how.backend(q[0], k[0], v[0], self.packed)[None], None


@dataclass(frozen=True)
class DenseBatch:
    """Every place computed, padding too; `mask` is transformers' for its sdpa, None is causal."""

    mask: Tensor | None  # (B, 1, T, K), bool or added to the scores
    maps: bool

    def arrange(self, x: Tensor) -> Tensor:
        return x

    def restore(self, x: Tensor) -> Tensor:
        return x

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cache: KeyValueCache, how: Attending
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H or G, T, D)
        if cache is not None:
            k, v = cache.update(k, v, how.layer)
        if self.maps:
            z, probs = _attend_with_maps(q, k, v, self.mask, how.dropout)
            return z.transpose(1, 2), probs
        causal = False
        if self.mask is None and q.shape[2] > 1:  # branched on: compiled, it would be a symbol
            causal = True  # a cache with places for more is given no mask where it was empty
            k, v = (x[:, :, : q.shape[2]] for x in (k, v))
        z = F.scaled_dot_product_attention(
            *(q, k, v, self.mask),
            dropout_p=how.dropout,
            is_causal=causal,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return z.transpose(1, 2), None


def pack_rows(mask: Tensor | None, positions: Tensor | None, inputs: Tensor) -> PackedBatch | None:
    """Pack what a mask (B, T) leaves of inputs (B, T, ...); None if it leaves nothing.

    Without a mask, a row holds several sequences where its given positions (B, T) start anew.
    """
    shape = (inputs.shape[0], inputs.shape[1])
    if mask is None:
        lengths = _split_rows(positions, shape)
        return PackedBatch(pack_lengths(lengths, device=inputs.device), shape, None)
    kept = mask.bool()
    lengths = [length for length in kept.sum(dim=1).tolist() if length]
    if not lengths:
        return None
    is_whole = sum(lengths) == shape[0] * shape[1]
    rows = None if is_whole else kept.flatten().nonzero()[:, 0]
    return PackedBatch(pack_lengths(lengths, device=inputs.device), shape, rows)


def _split_rows(positions: Tensor | None, shape: tuple[int, int]) -> list[int]:
    """The lengths of the sequences in rows without padding."""
    num_rows, width = shape
    if positions is None:
        return [width] * num_rows
    begins = torch.ones(shape, dtype=torch.bool, device=positions.device)
    begins[:, 1:] = positions.diff(dim=1) != 1  # positions may have one row for all
    places = begins.flatten().nonzero()[:, 0].tolist()
    ends = [*places[1:], num_rows * width]
    return [end - place for place, end in zip(places, ends, strict=True)]


def _attend_with_maps(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """The definition in fp32, under any mask; maps are in q's dtype."""
    k, v = (for_each_head(upcast(x), q) for x in (k, v))
    scores = upcast(q) @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, H, T, K)
    mask = _may_see(q, k) if mask is None else mask
    if mask.dtype == torch.bool:  # finite, so that a place which may see nothing has no NaN
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask
    probs = F.dropout(scores.softmax(dim=-1), dropout).to(q.dtype)
    return (upcast(probs) @ v).to(q.dtype), probs


def _may_see(q: Tensor, k: Tensor) -> Tensor:
    """(T, K) bool, where transformers gives no mask: T tokens alone, or one behind the others."""
    everything = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device)
    return everything if q.shape[-2] == 1 else everything.tril()
