"""Errors against float64: of all numbers the largest, and relative to the rows they belong to."""

from pathlib import Path

import torch
from torch import Tensor

Reference = list[list[Tensor]]
"""By state, then by text: (T, hidden) float64."""


def measure_errors(values: Path, reference: Reference, state: int) -> dict[str, dict[str, float]]:
    """For each kind of result its errors; where it has several states, those of the worst."""
    saved = torch.load(values, weights_only=True)
    errors = {}
    for kind, states in saved["pooled"].items():
        found = [compare(rows, pool_states(reference[i])) for i, rows in states.items()]
        errors[kind] = {name: max(error[name] for error in found) for name in found[0]}
    if saved["tokens"]:
        errors["layer_tokens"] = compare(torch.cat(saved["tokens"]), torch.cat(reference[state]))
    return errors


def pool_states(texts: list[Tensor]) -> Tensor:
    """(texts, 2, hidden): the mean and the last token."""
    return torch.stack([torch.stack([x.mean(0), x[-1]]) for x in texts])


def compare(ours: Tensor, reference: Tensor) -> dict[str, float]:
    difference = (ours.double() - reference).abs()
    relative = difference.norm(dim=-1) / reference.norm(dim=-1)
    return {
        "max_absolute": rounded(difference.max()),
        "max_relative": rounded(relative.max()),
        "relative": rounded(difference.norm() / reference.norm()),
    }


def rounded(x: Tensor) -> float:
    return float(f"{float(x):.3g}")
