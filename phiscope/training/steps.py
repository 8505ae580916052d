"""One step of training: a batch in parts, their gradients, and one update of the weights."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phiscope.errors import TrainingError
from phiscope.model import PhiForCausalLM
from phiscope.packing import pack_lengths
from phiscope.training.loss import head_loss
from phiscope.training.optimizer import schedule, set_rates
from phiscope.training.options import TrainingOptions
from phiscope.training.preparation import Data
from phiscope.training.state import Progress

_SMOOTHING = 0.98


@dataclass
class Run:
    """Everything a step needs."""

    options: TrainingOptions
    data: Data
    model: PhiForCausalLM
    optimizers: list[torch.optim.Optimizer]
    products: torch.dtype
    pool: ThreadPoolExecutor
    progress: Progress = dataclasses.field(default_factory=Progress)
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    bits_per_byte: float | None = None
    """Of the last look at a part of the held-out text."""

    @property
    def state(self) -> Path:
        return self.options.run_folder / "state.pt"

    @property
    def metrics(self) -> Path:
        """A line of JSON for each step."""
        return self.options.run_folder / "metrics.jsonl"

    @property
    def share(self) -> float:
        """How much of the run is over, by steps or by the clock, whichever is further."""
        share = self.progress.step / self.options.steps
        if self.options.minutes is not None:
            share = max(share, self.progress.seconds / (60 * self.options.minutes))
        return share

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed. Its length may change."""
        options = self.options
        return {
            "corpus": self.data.corpus.digest,
            "config": self.data.config.to_dict("phi5"),
            "seed": options.seed,
            "batch_windows": options.batch_windows,
            "micro_windows": options.micro_windows,
            "rates": {**vars(options.rates), "betas": list(options.rates.betas)},
            "clip": options.clip,
            "products": str(self.products),
        }


def take_step(run: Run) -> dict[str, float]:
    """One update of the weights; returns its figures. Nothing changes if the loss is no number."""
    options, progress = run.options, run.progress
    begin = time.perf_counter()
    factor = schedule(progress.step, run.share, options.rates)
    inputs, targets = run.data.windows.batch(progress.step, options.batch_windows)
    loss = _add_gradients(run, inputs, targets)
    norm = float(torch.nn.utils.clip_grad_norm_(run.model.parameters(), options.clip))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(
            f"step {progress.step + 1}: the loss is {loss} and the gradient's norm {norm}; resume "
            f"from the last saved state, or begin again with lower rates"
        )
    set_rates(run.optimizers, factor)
    list(run.pool.map(lambda optimizer: optimizer.step(), run.optimizers))
    progress.step += 1
    before = loss if progress.loss is None else progress.loss
    progress.loss = _SMOOTHING * before + (1 - _SMOOTHING) * loss
    speed = targets.numel() / (time.perf_counter() - begin)
    return {"loss": loss, "norm": norm, "rate": factor, "tokens_per_second": speed}


def _add_gradients(run: Run, inputs: Tensor, targets: Tensor) -> float:
    """Give every parameter its gradient of the mean loss, and return that loss.

    The parts of a batch are computed side by side, each by one thread, and summed in their order:
    the result does not depend on the number of threads, nor on which of them was held up.
    """
    size = run.options.micro_windows
    parts = zip(torch.split(inputs, size), torch.split(targets, size), strict=True)
    parameters = list(run.model.parameters())
    for parameter in parameters:
        parameter.grad = None
    total = 0.0
    for loss, gradients in run.pool.map(lambda part: _micro_step(run, *part), parts):
        total += loss
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad += gradient
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad /= targets.numel()
    return total / targets.numel()


def _micro_step(run: Run, inputs: Tensor, targets: Tensor) -> tuple[float, tuple[Tensor, ...]]:
    """The summed loss of one forward pass, and its gradients."""
    packed = pack_lengths([inputs.shape[1]] * inputs.shape[0])
    head = run.model.lm_head
    assert head is not None
    low = run.products != torch.float32
    with torch.autocast("cpu", run.products if low else torch.bfloat16, enabled=low):
        hidden = run.model.model(inputs.flatten(), packed)
    loss = head_loss(hidden, head.weight, head.bias, targets.flatten(), products=run.products)
    return float(loss.detach()), torch.autograd.grad(loss, list(run.model.parameters()))
