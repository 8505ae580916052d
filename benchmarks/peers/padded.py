"""How every peer is run: texts in padded batches, states of a batch, what is kept of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from corpus import in_order, one_by_one, sorted_by_length
from outcome import Outcome, Setting
from source import Source
from torch import Tensor

ORDERS = {
    "batches of 8 as the texts come": in_order,
    "sorted batches of 8": sorted_by_length,
    "one text at a time": one_by_one,
}
SORTED, SINGLE = list(ORDERS)[1:]


@dataclass(frozen=True)
class Batch:
    """Texts padded on the right."""

    rows: list[int]
    lengths: list[int]
    ids: Tensor  # (B, T)

    @property
    def mask(self) -> Tensor | None:
        """(B, T), 1 for real tokens; None where all are."""
        if len(self.rows) == 1:
            return None
        mask = torch.arange(self.ids.shape[1]) < torch.tensor(self.lengths)[:, None]
        return mask.long().to(self.ids.device)


States = Mapping[int, Tensor]
"""By number, (B, T, hidden)."""


def make_settings(
    group: str,
    compute: Callable[[Batch], States],
    source: Source,
    *,
    kinds: Sequence[str],
    orders: Sequence[str] = (SORTED, SINGLE),
    takes_short: bool = False,
    what: str,
) -> list[Setting]:
    """A peer's settings, one for each order."""
    return [
        Setting(
            name=f"{group}, {order}",
            group=group,
            what=what,
            kinds=tuple(kinds),
            run=partial(run_batches, compute, order, source),
            takes_short=takes_short and order in (SORTED, SINGLE),
        )
        for order in orders
    ]


def run_batches(
    compute: Callable[[Batch], States],
    order: str,
    source: Source,
    texts: list[list[int]],
    kinds: tuple[str, ...],
) -> Outcome:
    state = source.state
    outcome = Outcome(tokens=[torch.empty(0)] * len(texts), device=source.device)
    for rows in ORDERS[order](texts):
        with outcome.time(*kinds), torch.inference_mode():
            batch = pad(rows, texts, source.device)
            states = compute(batch)
        for kind in kinds:
            with outcome.time(kind), torch.inference_mode():
                if kind == "layer_tokens":
                    keep_tokens(outcome, states[state], batch)
                else:
                    wanted = {state: states[state]} if kind == "layer_pooled" else states
                    keep_pooled(outcome, kind, wanted, batch, len(texts))
    return outcome


def pad(rows: list[int], texts: list[list[int]], device: torch.device) -> Batch:
    lengths = [len(texts[row]) for row in rows]
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : lengths[place]] = torch.tensor(texts[row])
    return Batch(rows, lengths, ids.to(device))


def keep_tokens(outcome: Outcome, x: Tensor, batch: Batch) -> None:
    for place, (row, length) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
        outcome.tokens[row] = x[place, :length].to("cpu", copy=True)


def keep_pooled(outcome: Outcome, kind: str, states: States, batch: Batch, num_texts: int) -> None:
    """The mean and the last token of each text, in fp32."""
    for number, x in states.items():
        vectors = outcome.pooled.setdefault(kind, {}).setdefault(
            number, torch.empty(num_texts, 2, x.shape[-1])
        )
        for place, (row, length) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
            vectors[row, 0] = x[place, :length].mean(0, dtype=torch.float32)
            vectors[row, 1] = x[place, length - 1]
