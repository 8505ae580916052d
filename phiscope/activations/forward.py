"""Capturing many sequences: packed into batches and run as far as the points need.

The longest come first, so that what a batch costs is known from the first one.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from phiscope.activations.capture import CapturePlan, plan_capture
from phiscope.activations.edits import Edit
from phiscope.activations.keeping import Keep
from phiscope.activations.points import Point
from phiscope.model import PhiForCausalLM, refuse_dropout
from phiscope.packing import Packed, pack_lengths, plan_batches

Prompt = Sequence[int] | Tensor
"""Token ids, or embeddings (T, hidden)."""


def capture_batches(
    model: PhiForCausalLM,
    prompts: Sequence[Prompt],
    points: Sequence[Point],
    *,
    edits: Sequence[Edit] = (),
    keep: Keep | None = None,
    token_budget: int = 8192,
) -> Iterator[tuple[list[int], CapturePlan]]:
    """Run prompts and give, for each batch, which of them it holds and its filled plan.

    Raises `ValueError` for a prompt without tokens and for a model whose dropout is on.
    """
    refuse_dropout(model)
    lengths = [len(prompt) for prompt in prompts]
    if 0 in lengths:
        raise ValueError(f"prompt {lengths.index(0)} has no tokens: there is no state to capture")
    for edit in edits:
        edit.check(model.config)
    batches = plan_batches(lengths, token_budget)
    return _run_batches(model, prompts, batches, points, edits, keep)


def capture_rows(
    model: PhiForCausalLM,
    prompts: Sequence[Prompt],
    points: Sequence[Point],
    edits: Sequence[Edit],
    token_budget: int,
) -> dict[str, list[Tensor]]:
    """For each point the rows (T, ...) of every prompt, in their order."""
    rows: dict[str, dict[int, Tensor]] = {str(point): {} for point in points}
    for batch, plan in capture_batches(
        model, prompts, points, edits=edits, token_budget=token_budget
    ):
        for sequence, row in enumerate(batch):
            for name, tensor in plan.rows(sequence).items():
                rows[name][row] = tensor
    return {name: [found[row] for row in range(len(prompts))] for name, found in rows.items()}


def capture_pooled(
    model: PhiForCausalLM,
    prompts: Sequence[Prompt],
    points: Sequence[Point],
    reducers: tuple[str, ...],
    edits: Sequence[Edit],
    token_budget: int,
) -> dict[tuple[str, str], Tensor]:
    """For each point and reducer one tensor (prompts, ...) in fp32."""
    order: list[int] = []
    parts: dict[tuple[str, str], list[Tensor]] = {}
    keep = Keep(reducers=reducers)
    for batch, plan in capture_batches(
        model, prompts, points, edits=edits, keep=keep, token_budget=token_budget
    ):
        order += batch
        for name, vectors in plan.pooled().items():
            parts.setdefault(name, []).append(vectors)
    places = torch.tensor(order).argsort()
    return {name: torch.cat(pieces)[places] for name, pieces in parts.items()}


def run(model: PhiForCausalLM, inputs: Tensor, packed: Packed, plan: CapturePlan) -> None:
    """One forward for its plan alone: the head is computed only if logits are wanted."""
    with torch.inference_mode():
        if plan.wants("logits"):
            model(inputs, packed, plan=plan)
        else:
            model.model(inputs, packed, plan=plan)


def _run_batches(
    model: PhiForCausalLM,
    prompts: Sequence[Prompt],
    batches: Sequence[list[int]],
    points: Sequence[Point],
    edits: Sequence[Edit],
    keep: Keep | None,
) -> Iterator[tuple[list[int], CapturePlan]]:
    for batch in batches:
        chosen = [prompts[row] for row in batch]
        inputs = _join(model, chosen)
        packed = pack_lengths([len(prompt) for prompt in chosen], device=inputs.device)
        plan = plan_capture(packed, points, edits=edits, keep=keep)
        run(model, inputs, packed, plan)
        yield batch, plan


def _join(model: PhiForCausalLM, prompts: Sequence[Prompt]) -> Tensor:
    """Prompts end to end: ids (N,), or embeddings (N, hidden) if any prompt has them."""
    embed = model.model.embed_tokens
    parts = [torch.as_tensor(prompt, device=embed.weight.device) for prompt in prompts]
    if not any(part.is_floating_point() for part in parts):
        return torch.cat(parts)
    with torch.no_grad():
        dtype = model.model.hidden_dtype
        return torch.cat([p.to(dtype) if p.is_floating_point() else embed(p) for p in parts])
