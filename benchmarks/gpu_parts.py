"""What the GPU benchmarks share: models in their modes, one after the other, and what fails, said.

`--device cpu` is for trying the benchmarks themselves on a small checkpoint: modes then run on the
CPU, those that cannot are reported as failed, and no figure means anything.
"""

import argparse
import gc
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from measure import median, write_result

from phiscope.activations.fixed_plan import FixedPlans
from phiscope.checkpoint import load_model
from phiscope.decoding import make_replay
from phiscope.generation.fixed_step import Replay
from phiscope.inference import prepare
from phiscope.model import PhiForCausalLM
from phiscope.runtime import MODES, Mode, describe_machine, find_obstacle

GPU_MODES = [name for name, mode in MODES.items() if mode.device == "cuda"]


def read_arguments(summary: str, modes: Sequence[str], name: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--modes", nargs="+", default=list(modes), choices=GPU_MODES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200, help="of a sequence that is compared")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048, help="of each of 8 prompts")
    parser.add_argument("--name", default=name)
    return parser.parse_args()


class Report:
    """Figures by name, written after each, so that what fails or is cut off loses no others."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._figures: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}

    def add(self, name: str, measure: Callable[[], Any]) -> None:
        """Measure and keep the figure; of a failure, its last words."""
        begin = time.perf_counter()
        try:
            self._figures[name] = measure()
        except Exception as error:
            traceback.print_exc()
            self._figures[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(f"{name}: {time.perf_counter() - begin:.0f} s, {self._figures[name]}", flush=True)
        with redirect_stdout(StringIO()):  # it prints the whole file, each time
            write_result(self._name, self._figures)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def open_model(options: argparse.Namespace, name: str) -> Iterator[tuple[PhiForCausalLM, Mode]]:
    """A model in its mode; refused where this machine lacks the mode."""
    mode = replace(MODES[name], device=options.device)
    obstacle = find_obstacle(mode, describe_machine())
    if obstacle is not None:
        raise RuntimeError(f"mode {name} {obstacle}")
    model = load_model(options.checkpoint, dtype=mode.dtype, device=mode.device)
    yield prepare(model, mode), mode


def find_replay(model: PhiForCausalLM, mode: Mode, *, is_recorded: bool = True) -> Replay:
    """The mode's; or steps that are run from the same buffers and not recorded."""
    found = make_replay(model, mode) if is_recorded else None
    return found or Replay(record=lambda work: work, plans=FixedPlans())  # type: ignore[arg-type]


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_task(task: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each run but the first."""
    seconds = []
    for _ in range(1 + repeats):
        wait()
        begin = time.perf_counter()
        task()
        wait()
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def measure_copy_bandwidth(device: str, num_bytes: int) -> float:
    """Bytes read and written per second."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / min(time_task(lambda: target.copy_(source), 10))


def measure_peak(device: str, dtype: torch.dtype, size: int) -> float:
    """Operations per second of a square product, the median of many."""
    x = torch.randn(size, size, dtype=dtype, device=device)
    y = torch.randn(size, size, dtype=dtype, device=device)
    return 2 * size**3 / median(time_task(lambda: x @ y, 20))


def relative_error(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    ours, wanted = ours.double().cpu(), wanted.double().cpu()
    return float(f"{float((ours - wanted).norm() / wanted.norm()):.3g}")


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in figures.items()}
