"""Measure loading a checkpoint against reading its bytes, its peak memory, and `layers=17`.

The files are in the page cache (one warm-up of each task). Every task fills memory that was not
touched before, as a loader must; "read" is one plain `readinto` per file, "read_4_threads" the
same with positioned reads of several threads.

    python benchmarks/loading.py CHECKPOINT [--dtype bfloat16] [--layers 17]
"""

import argparse
import gc
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from measure import interleave, median, write_result

from phiscope.checkpoint import describe, load_model
from phiscope.checkpoint.stored import WeightFile, view_bytes
from phiscope.checkpoint.weights import num_threads
from phiscope.config import DTYPES

PART = 16 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--layers", type=int, default=17)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="loading")
    parser.add_argument("--peak", choices=["load", "layers", "nothing"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(measure_once(options)))
        return
    summary = describe(options.checkpoint)
    paths = [options.checkpoint / name for name in summary.files]
    dtype = getattr(torch, options.dtype)
    seconds = interleave(
        {
            "read": lambda: read_plainly(paths),
            "read_threads": lambda: read_with_threads(paths),
            "load_model": lambda: load(options.checkpoint, dtype, None),
            "load_model_layers": lambda: load(options.checkpoint, dtype, options.layers),
        },
        repeats=options.repeats,
    )
    write_result(options.name, make_figures(options, summary.to_dict(), seconds))


def make_figures(options: argparse.Namespace, summary: dict, seconds: dict) -> dict:
    medians = {name: round(median(values), 3) for name, values in seconds.items()}
    stored = sum(summary["files"].values())
    apart = {what: run_apart(options, what) for what in ("nothing", "load", "layers")}
    base = apart["nothing"]["peak"]
    return {
        "layout": summary["layout"],
        "stored_dtypes": summary["dtypes"],
        "dtype": options.dtype,
        "stored_bytes": stored,
        "model_bytes": summary["num_parameters"] * getattr(torch, options.dtype).itemsize,
        "median_seconds": medians,
        "all_seconds": {name: [round(x, 3) for x in values] for name, values in seconds.items()},
        "load_over_read": round(medians["load_model"] / medians["read"], 2),
        "load_over_read_threads": round(medians["load_model"] / medians["read_threads"], 2),
        "reader_threads": num_threads(),
        "peak_bytes_above_imports": apart["load"]["peak"] - base,
        "layers": options.layers,
        "layers_bytes_read": apart["layers"]["bytes_read"],
        "layers_peak_bytes_above_imports": apart["layers"]["peak"] - base,
    }


def measure_once(options: argparse.Namespace) -> dict:
    """In a process of its own: bytes asked of the files, and the peak of memory."""
    before = bytes_read()
    if options.peak != "nothing":
        layers = options.layers if options.peak == "layers" else None
        model = load_model(options.checkpoint, dtype=getattr(torch, options.dtype), layers=layers)
        assert not model.training
    return {"bytes_read": bytes_read() - before, "peak": peak_memory()}


def run_apart(options: argparse.Namespace, what: str) -> dict:
    command = [sys.executable, __file__, str(options.checkpoint), "--peak", what]
    command += ["--dtype", options.dtype, "--layers", str(options.layers)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def load(folder: Path, dtype: torch.dtype, layers: int | None) -> None:
    load_model(folder, dtype=dtype, layers=layers)
    gc.collect()


def read_plainly(paths: list[Path]) -> None:
    for path in paths:
        buffer = torch.empty(path.stat().st_size, dtype=torch.uint8)
        view, done = view_bytes(buffer), 0
        with path.open("rb", buffering=0) as file:
            while done < len(view):
                done += file.readinto(view[done:])


def read_with_threads(paths: list[Path]) -> None:
    for path in paths:
        buffer = torch.empty(path.stat().st_size, dtype=torch.uint8)
        view = view_bytes(buffer)
        with WeightFile(path) as file, ThreadPoolExecutor(num_threads()) as pool:
            starts = range(0, len(view), PART)
            reads = [pool.submit(file.read_into, view[x : x + PART], x, "it") for x in starts]
            for read in reads:
                read.result()


def peak_memory() -> int:
    """Peak bytes of this process alone: getrusage's figure is inherited from the one before it."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def bytes_read() -> int:
    """Bytes this process asked of any file, by the kernel's count."""
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


if __name__ == "__main__":
    main()
