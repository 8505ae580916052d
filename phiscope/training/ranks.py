"""Ranks: the processes of one run of training, started by `torchrun`, or a single one.

Weights, gradients and optimizers are sharded over all ranks (FSDP2), block by block; every rank
computes its share of a step's windows. One process needs no process group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed, nn

from phiscope.errors import TrainingError
from phiscope.training.objective import Objective


@dataclass(frozen=True)
class Ranks:
    """This process's number among `size`, the device it computes on, and what all agree on."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` things are this rank's; every rank has as many."""
        if count % self.size:
            raise TrainingError(
                f"{count} parts of a batch cannot be shared by {self.size} ranks: choose"
                " batch_windows / micro_windows as a multiple of the ranks"
            )
        return range(self.rank, count, self.size)

    def sum(self, *numbers: float) -> list[float]:
        """Each number added up over all ranks."""
        return self._reduce(numbers, distributed.ReduceOp.SUM)

    def largest(self, number: float) -> float:
        """The largest that any rank has."""
        return self._reduce([number], distributed.ReduceOp.MAX)[0]

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            distributed.barrier()

    def shard(self, objective: Objective) -> None:
        """Keep on each rank a part of every weight, whole only while a block computes."""
        if self.size == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        for block in objective.model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)

    def _reduce(self, numbers: Any, operation: Any) -> list[float]:
        values = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        if self.size > 1:
            distributed.all_reduce(values, operation)
        found: list[float] = values.tolist()
        return found


@contextmanager
def joined(device: str | None = None) -> Iterator[Ranks]:
    """The ranks that `torchrun` has started, joined for as long as the block runs; else one.

    `device` is cuda or cpu; None takes GPUs if there are any.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    size, rank = (int(os.environ.get(name, n)) for name, n in (("WORLD_SIZE", 1), ("RANK", 0)))
    place = torch.device(kind)
    if kind == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(place)
    if size == 1:
        yield Ranks(device=place)
        return
    was_joined = distributed.is_initialized()
    if not was_joined:
        distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Ranks(rank, size, place)
    finally:
        if not was_joined:
            distributed.destroy_process_group()


def gather_weights(model: nn.Module) -> dict[str, Any]:
    """All weights on the CPU, on every rank's first; the others get none."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=whole)
