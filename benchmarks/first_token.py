"""Time from starting a command to the first token it prints, of phiscope and of transformers.

Every try is a process of its own; the checkpoint's files are in the page cache, which the warm-up
sees to. Beside them stands what nobody can do without, Python's import of torch, and the same as
library calls that read the files into memory of their own.

    python benchmarks/first_token.py CHECKPOINT [--repeats 5]
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from measure import median, write_result

PROMPT = "def print_prime(n):"
TRANSFORMERS = """
import sys, torch
torch.set_num_threads(int(sys.argv[2]))
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
inputs = tokenizer(sys.argv[3], return_tensors="pt")
output = model.generate(**inputs, min_new_tokens=1, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(output[0]), flush=True)
"""
READING = """
import sys
import phiscope
phi = phiscope.load(sys.argv[1], num_threads=int(sys.argv[2]))
print(phi.generate(sys.argv[3], max_new_tokens=1).text, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="first_token")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)  # as the result says
    folder, threads = str(options.checkpoint), str(options.threads)
    ours = ("-m", "phiscope", "generate", PROMPT, "--model", folder, "--threads", threads)
    commands = {
        "phiscope": (*ours, "--max-new-tokens", "1"),
        "transformers": ("-c", TRANSFORMERS, folder, threads, PROMPT),
        "import_torch": ("-c", "import torch; print(1, flush=True)"),
        "phiscope_reading": ("-c", READING, folder, threads, PROMPT),
    }
    seconds = take_turns(commands, options.repeats)
    figures = {
        "what": "seconds from the start of a process to the first byte it prints",
        "median": {name: round(median(tries), 2) for name, tries in seconds.items()},
        "tries": {name: [round(x, 2) for x in tries] for name, tries in seconds.items()},
    }
    write_result(options.name, figures)


def take_turns(commands: Mapping[str, Sequence[str]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each command, but for the first turn, which warms up."""
    turns = [{name: time_to_output(x) for name, x in commands.items()} for _ in range(1 + repeats)]
    return {name: [turn[name] for turn in turns[1:]] for name in commands}


def time_to_output(command: Sequence[str]) -> float:
    """Seconds to the first byte; what comes after it is waited for, and not counted."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout as output, process.stderr as errors:
        if not output.read(1):
            raise RuntimeError(errors.read().decode())
        seconds = time.perf_counter() - begin
        process.kill()
        process.wait()
    return seconds


if __name__ == "__main__":
    main()
