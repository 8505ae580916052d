"""What every benchmark shares: the machine's description, interleaved timing, results as JSON."""

import ctypes
import gc
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch

from phiscope.runtime import describe_machine

RESULTS = Path(__file__).parent / "results"


def interleave(
    tasks: Mapping[str, Callable[[], object]], *, repeats: int = 5, warmups: int = 1
) -> dict[str, list[float]]:
    """Seconds of each task, run in turn so that a drift of the machine meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(warmups + repeats):
        for name, task in tasks.items():
            begin = time.perf_counter()
            task()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmups:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def peak_memory() -> int:
    """Bytes of memory this process held at most (not its parent's, as getrusage may say)."""
    return read_status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_memory_of(task: Callable[[], object]) -> int:
    """Bytes held at most while a task runs, on the GPU if there is one, beyond those before it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        task()
        return torch.cuda.max_memory_allocated() - before
    _release_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")
    before = read_status("VmRSS")
    task()
    return read_status("VmHWM") - before


def read_status(key: str) -> int:
    """Bytes that Linux names of this process; 0 elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    (line,) = [x for x in status.read_text().splitlines() if x.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


def _release_freed_memory() -> None:
    """Give back what the allocator keeps, where it is glibc's: it would count as held before."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def write_result(name: str, figures: Mapping[str, Any]) -> Path:
    """Write figures with the machine they belong to as results/NAME.json, and print them."""
    machine = describe_machine()
    result = {
        "date": date.today().isoformat(),
        "machine": {
            "cpu": machine.cpu,
            "cores": machine.num_cores,
            "cpu_features": machine.cpu_features,
            "memory_gb": round(machine.memory / 1e9, 1),
            "gpus": machine.gpus,
            "system": platform.system(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path.read_text())
    return path
