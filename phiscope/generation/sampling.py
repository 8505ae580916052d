"""Logits to tokens: processors on rows, in one fixed order, then a draw from each row's own stream.

The order is: spare ids out, logit bias, repetition penalty, presence and frequency penalties; then
greedy rows take their maximum, and the others go on to temperature, top-k, top-p, min-p and the
draw. Every processor is a pure function of rows, one option per row, and rows never meet: a
request's tokens do not depend on its neighbours in the batch.

A row may bring a draft token and the distribution q it was drawn from. It is then kept with
probability min(1, p/q), and what takes its place otherwise is drawn from (p - q)+: together that is
a draw from p (arXiv:2211.17192). A draft token that was not drawn but is certain needs no rule of
its own: a draw from p either equals it or not.

Letters: R rows, V vocabulary. Logits are fp32 at least.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from phiscope.generation.options import GenerationOptions

_NUCLEUS = 512
"""Ids that top-p looks at before it sorts the whole vocabulary."""
_PURPOSES = {"tokens": (), "draft": (1,)}


class Stream:
    """Random numbers in [0, 1), the i-th for the i-th token, whoever asks and however often."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._numbers: list[float] = []

    def __getitem__(self, index: int) -> float:
        while len(self._numbers) <= index:
            number = torch.rand(1, generator=self._generator, dtype=torch.float64)
            self._numbers.append(number.item())
        return self._numbers[index]


@dataclass(frozen=True, eq=False)
class Proposal:
    """A draft token and the probabilities (V,) it was drawn with."""

    token_id: int
    probs: Tensor


class SamplingState:
    """What sampling remembers of one completion: its options, random streams and token counts."""

    def __init__(
        self,
        options: GenerationOptions,
        *,
        seed: int,
        index: int,
        prompt_ids: Sequence[int],
        num_tokens: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.options = options
        self.device = torch.device(device)
        self.num_chosen = 0
        self.numbers: Stream | None = None
        """Decide the tokens; None where sampling is greedy."""
        self.draft_numbers: Stream | None = None
        """Decide draft tokens, and nothing else."""
        if options.temperature:
            self.numbers = Stream(make_generator(seed, index))
            self.draft_numbers = Stream(make_generator(seed, index, "draft"))
        self.prompt_mask: Tensor | None = None  # (V,) bool
        self.counts: Tensor | None = None  # (V,) int32: how often each id was sampled
        if options.uses_counts:
            ids = sorted({token_id for token_id in prompt_ids if token_id < num_tokens})
            self.prompt_mask = torch.zeros(num_tokens, dtype=torch.bool, device=device)
            self.prompt_mask[torch.tensor(ids, dtype=torch.int64, device=device)] = True
            self.counts = torch.zeros(num_tokens, dtype=torch.int32, device=device)

    def add(self, token_id: int) -> None:
        """Count a sampled token."""
        self.num_chosen += 1
        if self.counts is not None:
            self.counts[token_id] += 1

    def ahead(self, token_ids: Sequence[int]) -> "SamplingState":
        """The state as it would be after these tokens."""
        if not token_ids:
            return self
        later = copy(self)
        if self.counts is not None:
            later.counts = self.counts.clone()
        for token_id in token_ids:
            later.add(token_id)
        return later


def make_generator(
    seed: int, index: int, purpose: Literal["tokens", "draft"] = "tokens"
) -> torch.Generator:
    """A random stream of completion `index` of a request, unlike that of any other pair.

    It lies on the CPU whatever the device of the model, so that a seed means the same everywhere.
    """
    entropy = [seed, index, *_PURPOSES[purpose]]
    mixed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))


def choose_tokens(
    logits: Tensor,
    states: Sequence[SamplingState],
    num_tokens: int,
    proposals: Mapping[int, Proposal] | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose one of the first `num_tokens` ids for each row of logits (R, V).

    `proposals` are the draft tokens of some of the sampled rows; whichever id is chosen follows the
    row's own distribution. Returns ids (R,) int64, and (R,) bool: whether any token was left to
    choose, without which the id is 0. A sampled row takes its number from its state's stream.
    """
    logits = process(drop_spare_ids(logits, num_tokens), states)
    best, ids = logits.max(dim=-1)
    drawn = [row for row, state in enumerate(states) if state.numbers is not None]
    if drawn:
        probs = _probabilities(logits, states, drawn)
        numbers = [x[state.num_chosen] for state in states if (x := state.numbers) is not None]
        uniforms = torch.tensor(numbers, dtype=torch.float64, device=logits.device)
        ids[_index(drawn, logits)] = draw_from(probs, uniforms)
        for place, row in enumerate(drawn):
            if proposals and row in proposals:
                ids[row] = keep_or_replace(probs[place], proposals[row], uniforms[place])
    is_possible = best.isfinite()
    return ids.masked_fill(~is_possible, 0), is_possible


def propose_tokens(
    logits: Tensor, states: Sequence[SamplingState], num_tokens: int
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Draw a draft token for each row of a draft model's logits (R, V).

    Returns ids (R,) and whether any was possible (R,), as `choose_tokens` does, and each row's
    probabilities (num_tokens,); None where the row is greedy and its id certain.
    """
    logits = process(drop_spare_ids(logits, num_tokens), states)
    best, ids = logits.max(dim=-1)
    found: list[Tensor | None] = [None] * len(states)
    drawn = [row for row, state in enumerate(states) if state.draft_numbers is not None]
    if drawn:
        probs = _probabilities(logits, states, drawn)
        numbers = [x[s.num_chosen] for s in states if (x := s.draft_numbers) is not None]
        uniforms = torch.tensor(numbers, dtype=torch.float64, device=logits.device)
        ids[_index(drawn, logits)] = draw_from(probs, uniforms)
        for place, row in enumerate(drawn):
            found[row] = probs[place]
    is_possible = best.isfinite()
    return ids.masked_fill(~is_possible, 0), is_possible, found


def keep_or_replace(probs: Tensor, proposal: Proposal, uniform: Tensor) -> Tensor:
    """Keep a draft token with probability min(1, p/q), else draw from (p - q)+; the id ().

    `probs` are p (V,). One number in [0, 1) serves both: where it rejects, what lies above p/q is
    again as good as any.
    """
    p, q = probs.double(), proposal.probs.to(probs.device).double()
    kept = p[proposal.token_id] / q[proposal.token_id]
    if bool(uniform < kept):
        return torch.tensor(proposal.token_id, device=probs.device)
    rest = (p - q).clamp_min(0)
    if not bool(rest.any()):  # p = q up to rounding
        rest = p
    return draw_from(rest[None], ((uniform - kept) / (1 - kept))[None])[0]


def process(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Bias and penalties, each on the rows (R, V) whose options ask for it."""
    return _apply(_PROCESSORS, logits, states)


def keep_likely(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Temperature, top-k, top-p and min-p, each on the rows (R, V) whose options ask for it."""
    return _apply(_FILTERS, logits, states)


def drop_spare_ids(logits: Tensor, num_tokens: int) -> Tensor:
    """Leave out the ids from `num_tokens` on: embedding rows that no token of the text uses."""
    return logits[:, :num_tokens]


def add_logit_bias(logits: Tensor, biases: Sequence[Mapping[int, float]]) -> Tensor:
    """Add each row's bias to the logits of the ids it names."""
    rows = [row for row, bias in enumerate(biases) for _ in bias]
    ids = [token_id for bias in biases for token_id in bias]
    values = logits.new_tensor([value for bias in biases for value in bias.values()])
    return logits.index_put((_index(rows, logits), _index(ids, logits)), values, accumulate=True)


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Divide positive and multiply negative logits of the `seen` (R, V) ids by `penalty` (R, 1).

    From arXiv:1909.05858; seen is, as for Hugging Face, what is in prompt or completion.
    """
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalized, logits)


def penalize_counts(logits: Tensor, counts: Tensor, presence: Tensor, frequency: Tensor) -> Tensor:
    """Take `presence` (R, 1) from ids with `counts` (R, V) above 0, and `frequency` per count.

    As for OpenAI, only the completion is counted.
    """
    return logits - presence * (counts > 0) - frequency * counts


def scale_temperature(logits: Tensor, temperature: Tensor) -> Tensor:
    """Divide by `temperature` (R, 1); the maximum goes to 0 first, so that nothing overflows."""
    highest = logits.amax(dim=-1, keepdim=True)
    return (logits - highest) / temperature.clamp_min(torch.finfo(logits.dtype).tiny)


def keep_top_k(logits: Tensor, k: Sequence[int]) -> Tensor:
    """Keep each row's k likeliest ids, and those that tie with the k-th."""
    limits = [min(limit, logits.shape[-1]) for limit in k]
    highest = logits.topk(max(limits), dim=-1).values
    least = highest.gather(-1, _index(limits, logits)[:, None] - 1)
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the fewest ids whose probabilities add up to p (R, 1) (arXiv:1904.09751)."""
    kept, is_whole = _keep_nucleus(logits, p, min(_NUCLEUS, logits.shape[-1]))
    if not bool(is_whole.all()):
        rows = (~is_whole).nonzero()[:, 0]
        kept[rows], _ = _keep_nucleus(logits[rows], p[rows], logits.shape[-1])
    return kept


def keep_min_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep ids at least p (R, 1) times as likely as the likeliest (arXiv:2407.01082)."""
    probs = logits.softmax(dim=-1)
    return logits.masked_fill(probs < p * probs.amax(dim=-1, keepdim=True), -torch.inf)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """The id (R,) that each row's number in [0, 1) falls on, by the probabilities of logits."""
    return draw_from(logits.softmax(dim=-1), uniforms)


def draw_from(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The id (R,) at which the sum of weights (R, V) passes each row's share in [0, 1) of it."""
    reached = weights.cumsum(dim=-1, dtype=torch.float64)
    total = reached[:, -1:]
    target = torch.minimum(uniforms[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(reached, target, right=True)[:, 0]


def _keep_nucleus(logits: Tensor, p: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Keep ids as top-p does, looking at the k likeliest alone; and whether those reach p (R,)."""
    values, ids = logits.topk(k, dim=-1)
    probs = (values - logits.logsumexp(dim=-1, keepdim=True)).exp()
    reached = probs.cumsum(dim=-1)
    removed = reached - probs >= p
    removed[:, 0] = False
    nothing = torch.full_like(logits, -torch.inf)
    kept = nothing.scatter(-1, ids, values.masked_fill(removed, -torch.inf))
    return kept, reached[:, -1] >= p[:, 0]


def _apply(table: "_Table", logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Run each processor on the rows whose options want it, and leave the others as they are."""
    for is_wanted, processor in table:
        wanted = [row for row, state in enumerate(states) if is_wanted(state.options)]
        if len(wanted) == len(states):
            logits = processor(logits, states)
        elif wanted:
            rows = _index(wanted, logits)
            changed = processor(logits[rows], [states[row] for row in wanted])
            logits = logits.index_copy(0, rows, changed)
    return logits


def _bias(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    return add_logit_bias(logits, [state.options.logit_bias for state in states])


def _repetition(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    counts, prompt_masks = _stack_counts(states)
    penalty = _column("repetition_penalty", states, logits)
    return penalize_repetition(logits, prompt_masks | (counts > 0), penalty)


def _counts(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    counts, _ = _stack_counts(states)
    presence, frequency = (
        _column(name, states, logits) for name in ("presence_penalty", "frequency_penalty")
    )
    return penalize_counts(logits, counts, presence, frequency)


def _temperature(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    return scale_temperature(logits, _column("temperature", states, logits))


def _top_k(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    return keep_top_k(logits, [state.options.top_k or 0 for state in states])


def _top_p(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    return keep_top_p(logits, _column("top_p", states, logits))


def _min_p(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    return keep_min_p(logits, _column("min_p", states, logits))


_Processor = Callable[[Tensor, Sequence[SamplingState]], Tensor]
_Table = tuple[tuple[Callable[[GenerationOptions], bool], _Processor], ...]

_PROCESSORS: _Table = (
    (lambda options: bool(options.logit_bias), _bias),
    (lambda options: options.repetition_penalty != 1, _repetition),
    (lambda options: bool(options.presence_penalty or options.frequency_penalty), _counts),
)
_FILTERS: _Table = (
    (lambda options: True, _temperature),
    (lambda options: options.top_k is not None, _top_k),
    (lambda options: options.top_p is not None and options.top_p < 1, _top_p),
    (lambda options: bool(options.min_p), _min_p),
)


def _stack_counts(states: Sequence[SamplingState]) -> tuple[Tensor, Tensor]:
    counts = [state.counts for state in states if state.counts is not None]
    masks = [state.prompt_mask for state in states if state.prompt_mask is not None]
    return torch.stack(counts), torch.stack(masks)  # each (R, V)


def _probabilities(logits: Tensor, states: Sequence[SamplingState], rows: Sequence[int]) -> Tensor:
    """What these rows of processed logits are drawn from: (rows, V)."""
    some = logits[_index(rows, logits)]
    return keep_likely(some, [states[row] for row in rows]).softmax(dim=-1)


def _column(name: str, states: Sequence[SamplingState], logits: Tensor) -> Tensor:
    """One option of each row as (R, 1)."""
    return logits.new_tensor([[getattr(state.options, name)] for state in states])


def _index(values: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)
