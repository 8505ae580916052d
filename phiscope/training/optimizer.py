"""Optimizers and the schedule: Muon for the matrices inside the blocks, AdamW for all else.

Muon (torch's own, "original" scaling: lr * sqrt(max(1, rows / columns))) makes each update of a
matrix orthogonal. Embeddings, head, norms and biases are no such maps and take AdamW.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from phiscope.errors import UnsupportedError

Method = Literal["muon", "adamw"]
_MUON: Any = getattr(torch.optim, "Muon", None)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Peak learning rates, and how they rise and fall."""

    method: Method = "muon"
    matrix_lr: float = 0.02
    """Of the blocks' matrices."""
    other_lr: float = 3e-3
    """Of embeddings, head, norms and biases."""
    weight_decay: float = 0.05
    """On matrices only."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    warmup_steps: int = 100
    decay_share: float = 0.6
    """Share of all steps, at the end, in which the rate falls to zero in a line."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay_share <= 1.0:
            raise ValueError(f"decay_share must be from 0 to 1, got {self.decay_share}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps}")
        if self.method == "muon" and _MUON is None:
            raise UnsupportedError("this torch has no torch.optim.Muon; use method='adamw'")


def schedule(step: int, progress: float, rates: Rates) -> float:
    """The factor on the rates: a line up over the warm-up, flat, and a line down to zero.

    `progress` is the share of the run that is over. Until the fall begins the factor does not
    depend on the length of the run, so a run may be made longer or shorter before that.
    """
    rise = min(1.0, (step + 1) / (rates.warmup_steps + 1))
    fall = min(1.0, (1.0 - progress) / rates.decay_share) if rates.decay_share else 1.0
    return rise * max(0.0, fall)


def make_optimizers(model: nn.Module, rates: Rates) -> list[torch.optim.Optimizer]:
    """The optimizers of a Phi model, each group knowing its own peak rate as `peak_lr`."""
    groups = split_parameters(model)
    adamw = [
        {"params": groups["other_matrices"], "weight_decay": rates.weight_decay},
        {"params": groups["vectors"], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if rates.method == "adamw" or _MUON is None:
        adamw.append(
            {
                "params": groups["block_matrices"],
                "weight_decay": rates.weight_decay,
                "lr": rates.matrix_lr,
            }
        )
    else:
        for matrices in groups["block_matrices"]:
            optimizers.append(
                _MUON([matrices], lr=rates.matrix_lr, weight_decay=rates.weight_decay)
            )
    adamw = [group for group in adamw if group["params"]]  # torch saves no state of an empty one
    if adamw:
        settings: dict[str, Any] = {"lr": rates.other_lr, "betas": rates.betas, "eps": rates.eps}
        optimizers.append(torch.optim.AdamW(adamw, fused=True, **settings))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak_lr"] = group["lr"]
    return optimizers


def split_parameters(model: nn.Module) -> dict[str, list[Tensor]]:
    """Each parameter that is not frozen: matrices of the blocks, other matrices, or vectors."""
    groups: dict[str, list[Tensor]] = {"block_matrices": [], "other_matrices": [], "vectors": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            groups["vectors"].append(parameter)
        else:
            groups["block_matrices" if ".layers." in name else "other_matrices"].append(parameter)
    return groups


def set_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Give every group its peak rate times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
