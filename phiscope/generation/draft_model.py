"""DraftModel: a smaller model that drafts, with a cache of its own beside the engine's.

It draws from its own distribution under the same options as the model it drafts for, and hands that
distribution over, without which a drawn token could not be checked. Steering is not applied to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from phiscope.cache import KVCache
from phiscope.errors import NonFiniteError, UnsupportedError
from phiscope.generation.drafting import Draft, DraftAsk
from phiscope.generation.prefixes import count_shared
from phiscope.generation.sampling import SamplingState, propose_tokens
from phiscope.model import PhiForCausalLM, refuse_dropout
from phiscope.packing import pack_lengths
from phiscope.tokenizer import Tokenizer


class DraftSource(Protocol):
    """A model with its tokenizer, such as a `Phi`."""

    @property
    def model(self) -> PhiForCausalLM: ...

    @property
    def tokenizer(self) -> Tokenizer: ...


DraftChoice = Literal["prompt-lookup"] | DraftSource | None
"""What guesses the tokens to come."""


@dataclass(eq=False)
class _Slot:
    """The tokens whose keys a slot holds, and the completion they belong to."""

    owner: SamplingState | None = None
    token_ids: list[int] = field(default_factory=list)


@dataclass(eq=False)
class _Run:
    """A draft on its way: the tokens that have yet to run, and those drafted so far."""

    ask: DraftAsk
    num_wanted: int
    pending: list[int]
    token_ids: list[int] = field(default_factory=list)
    probs: list[Tensor] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return len(self.token_ids) >= self.num_wanted

    @property
    def draft(self) -> Draft:
        return Draft(tuple(self.token_ids), torch.stack(self.probs) if self.probs else None)


class DraftModel:
    """Drafts for the completions in an engine's slots, by a model with the same tokens.

    One step of it runs at most `token_budget` tokens or one of each completion. Beyond its own
    context nothing is drafted.
    """

    def __init__(
        self,
        model: PhiForCausalLM,
        *,
        num_slots: int,
        num_places: int,
        num_tokens: int,
        token_budget: int,
    ) -> None:
        if model.lm_head is None:
            raise UnsupportedError("a draft model loaded with layers= cannot draft; load it whole")
        if model.config.vocab_size < num_tokens:
            raise UnsupportedError(
                f"the draft model has {model.config.vocab_size} token ids and the model it drafts"
                f" for {num_tokens}: both must have the same tokens"
            )
        self.model = model
        self._num_tokens = num_tokens
        self._token_budget = token_budget
        self._num_places = min(num_places, model.config.max_position_embeddings)
        self._slots = [_Slot() for _ in range(num_slots)]
        self._cache: KVCache | None = None

    def draft(self, asks: Sequence[DraftAsk]) -> list[Draft]:
        """See `Drafter`. Raises `NonFiniteError` for logits with a NaN or an infinity."""
        refuse_dropout(self.model)
        runs = [self._begin(ask) for ask in asks]
        while going := [run for run in runs if not run.is_done]:
            self._step(going)
        return [run.draft for run in runs]

    @property
    def _device(self) -> torch.device:
        return self.model.model.embed_tokens.weight.device

    def _begin(self, ask: DraftAsk) -> _Run:
        """Keep of the slot what still holds: a draft that was refused leaves tokens behind."""
        room = self._num_places - len(ask.token_ids)
        slot = self._slots[ask.slot]
        if slot.owner is not ask.sampling:
            slot.owner, slot.token_ids = ask.sampling, []
        ids = list(ask.token_ids)
        same = count_shared(slot.token_ids, ids[:-1])
        del slot.token_ids[same:]
        return _Run(ask, max(0, min(ask.num_wanted, room)), ids[same:])

    def _step(self, runs: Sequence[_Run]) -> None:
        """Run what is pending, as far as the budget goes, and draw where nothing is left."""
        budget, chunks = self._token_budget, []
        for run in runs:
            length = max(1, min(len(run.pending), budget))
            chunks.append(run.pending[:length])
            budget -= length
        logits = self._forward(runs, chunks)
        due = []
        for row, (run, chunk) in enumerate(zip(runs, chunks, strict=True)):
            self._slots[run.ask.slot].token_ids += chunk
            del run.pending[: len(chunk)]
            if not run.pending:
                due.append(row)
        if due:
            self._draw([runs[row] for row in due], logits[due])

    @torch.inference_mode()
    def _forward(self, runs: Sequence[_Run], chunks: Sequence[Sequence[int]]) -> Tensor:
        """Logits (runs, V) of the last token of each chunk."""
        packed = pack_lengths(
            [len(chunk) for chunk in chunks],
            starts=[len(self._slots[run.ask.slot].token_ids) for run in runs],
            slots=[run.ask.slot for run in runs],
            device=self._device,
        )
        ids = torch.tensor([i for chunk in chunks for i in chunk], device=self._device)
        logits: Tensor = self.model(ids, packed, cache=self._filled_cache, rows=packed.last_rows)
        if not bool(logits.sum(dim=-1).isfinite().all()):
            raise NonFiniteError(
                "the draft model's logits have a NaN or an infinity: check its weights, and try"
                " fp32 if this is fp16"
            )
        return logits

    @property
    def _filled_cache(self) -> KVCache:
        """Reserved when it is first needed."""
        if self._cache is None:
            self._cache = KVCache(
                self.model.config,
                num_slots=len(self._slots),
                num_places=self._num_places,
                dtype=self.model.model.hidden_dtype,
                device=self._device,
            )
        return self._cache

    def _draw(self, runs: Sequence[_Run], logits: Tensor) -> None:
        """Draft one token for each run; where no token is possible its draft ends."""
        states = [run.ask.sampling.ahead(run.token_ids) for run in runs]
        logits = logits.to(runs[0].ask.sampling.device)
        ids, is_possible, probs = propose_tokens(logits, states, self._num_tokens)
        for run, token_id, possible, q in zip(
            runs, ids.tolist(), is_possible.tolist(), probs, strict=True
        ):
            if not possible:
                run.num_wanted = len(run.token_ids)
                continue
            run.token_ids.append(token_id)
            run.pending.append(token_id)
            if q is not None:
                run.probs.append(q)
