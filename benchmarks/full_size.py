"""Load a full-size checkpoint from each layout, generate 32 tokens and return its 33 states.

Each layout and mode runs in a process of its own, so that peak memory is its alone.

    python benchmarks/full_size.py FOLDER_A FOLDER_B ... [--modes fp32-cpu bf16-cpu]
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from measure import peak_memory, write_result

import phiscope

PROMPT = 'def print_prime(n):\n   """\n   Print all primes between 1 and n\n   """'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--modes", nargs="+", default=["fp32-cpu", "bf16-cpu"])
    parser.add_argument("--name", default="full_size")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_once(options.folders[0], options.modes[0])))
        return
    rows = [run_apart(folder, mode) for mode in options.modes for folder in options.folders]
    write_result(options.name, {"prompt_tokens": rows[0]["prompt_tokens"], "runs": rows})


def run_apart(folder: Path, mode: str) -> dict:
    command = [sys.executable, __file__, str(folder), "--modes", mode, "--one"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    row = json.loads(output.splitlines()[-1])
    print(row, file=sys.stderr, flush=True)
    return row


def run_once(folder: Path, mode: str) -> dict:
    begin = time.perf_counter()
    phi = phiscope.load(folder, mode=mode)
    loaded = time.perf_counter()
    first_token = next(phi.stream(PROMPT, max_new_tokens=1, ignore_eos=True), None) is not None
    prefilled = time.perf_counter()
    completion = phi.generate(PROMPT, max_new_tokens=32, ignore_eos=True)
    generated = time.perf_counter()
    states = phi.hidden_states(PROMPT)
    finished = time.perf_counter()
    return {
        "layout": phiscope.describe(folder).layout,
        "mode": mode,
        "load_seconds": round(loaded - begin, 2),
        "first_token_seconds": round(prefilled - loaded, 2) if first_token else None,
        "generate_32_tokens_seconds": round(generated - prefilled, 2),
        "hidden_states_seconds": round(finished - generated, 2),
        "new_tokens": len(completion.token_ids),
        "prompt_tokens": states.shape[1],
        "states": list(states.shape),
        "all_finite": bool(states.isfinite().all()),
        "peak_memory_gb": round(peak_memory() / 1e9, 2),
        "gpu_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


if __name__ == "__main__":
    main()
