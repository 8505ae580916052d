"""Checkpoints of a run: all that the next step depends on, written whole or not at all.

On one CPU process a resumed run gives bit for bit the weights of one that was never stopped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from phiscope.errors import TrainingError


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    """Steps taken; with the seed this is also the position in the data."""
    seconds: float = 0.0
    """Wall time of training, over all sittings."""
    loss: float | None = None
    """Moving average of the training loss, in nats per token."""


def save_state(
    path: Path,
    identity: Mapping[str, Any],
    progress: Progress,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Write the state of a run in the place of the one before."""
    state = {
        "identity": dict(identity),
        "progress": vars(progress).copy(),
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "rng": torch.get_rng_state(),
    }
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_state(
    path: Path,
    identity: Mapping[str, Any],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> Progress:
    """Put model, optimizers and random numbers where the run was left.

    Raises `TrainingError` if there is no such file, if it is damaged, or if the run that wrote it
    was another: the first difference is named.
    """
    state = _read(path)
    check_identity(state["identity"], identity, path)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    torch.set_rng_state(state["rng"])
    return Progress(**state["progress"])


def check_identity(saved: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with another model, corpus or schedule than the state was made with."""
    for name in (*wanted, *saved):
        if saved.get(name) != wanted.get(name):
            raise TrainingError(
                f"{path} belongs to another run: {name} was {saved.get(name)!r} and now is "
                f"{wanted.get(name)!r}; give the same, or another folder"
            )


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise TrainingError(f"nothing to resume: there is no {path}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds for a damaged file
        raise TrainingError(f"{path} is damaged and cannot be resumed: {error}") from error
    return state
