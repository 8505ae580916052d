"""Time prefill and decode of phiscope and its peers, side by side, beside the machine's limits.

Three cells: a prompt of 512 tokens to the logits of its last one, steps of one sequence, and steps
of eight. Everybody is a process of its own that holds its model and waits, and runs when it is
asked, never two at once. Those of the same bits that fit into memory together take turns in every
cell, in rotated order, with prompts that nobody has seen before. Before and after each cell the
read bandwidth and the matrix-product peaks are measured with the same threads, and the better
counts. Who cannot be had is left out, with the reason.

The peers' environment is described by `speed_peers.txt`, their models are made by
`make_peer_models.py`, the checkpoint by `make_checkpoint.py --layout D --dtype bfloat16`.

    python benchmarks/speed.py CHECKPOINT --peer-models FOLDER --peers-python PATH --threads 4
    python benchmarks/speed.py CHECKPOINT --entrants "phiscope bf16-cpu" "llama.cpp F16" ...
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from measure import write_result

from phiscope.config import read_config
from phiscope.runtime import describe_machine

sys.path.append(str(Path(__file__).parent / "peers"))
sys.path.append(str(Path(__file__).parent / "runners"))
from cells import Cell, Limits, Series, count_same, make_cells
from crew import Crew
from entrants import ENTRANTS, Entrant, make_lineups
from pipe import WorkerError

RUNNERS = Path(__file__).parent / "runners"
LIMITS = "limits"
BANDWIDTH_BYTES = 1 << 32
"""More than any cache holds."""
REFERENCES = ("transformers fp32 sdpa", "phiscope fp32-cpu")
"""Whose first tokens the others are compared with, the first that has run."""
Table = dict[str, dict[str, Series]]
"""By cell and setting."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)  # as the result says
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    figures = Benchmark(options).run()
    if options.name is None:
        print(json.dumps(figures, indent=2))
    else:
        write_result(options.name, figures)
    print(make_table(figures), file=sys.stderr)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="of layout D, in bf16")
    parser.add_argument("--peer-models", type=Path, help="what make_peer_models.py wrote")
    parser.add_argument("--peers-python", help="the Python of the peers' environment")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--entrants", nargs="+", choices=ENTRANTS, default=list(ENTRANTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32, help="of one token, in each decode cell")
    parser.add_argument("--name", help="of the result; without one it is only printed")
    parser.add_argument("--bandwidth-bytes", type=int, default=BANDWIDTH_BYTES)
    return parser.parse_args(arguments)


class Benchmark:
    """Lineup after lineup; what it finds stays."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._config = read_config(options.checkpoint)
        self._cells = make_cells(options.steps)
        self._entrants: dict[str, Entrant] = {}
        self._settings: dict[str, dict[str, Any]] = {}
        self._absent: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        self._table: Table = {cell.name: {} for cell in self._cells}
        self._limits: list[Limits] = []

    def run(self) -> dict[str, Any]:
        room = describe_machine().available_memory - 1.25 * self._options.bandwidth_bytes
        chosen = [ENTRANTS[name] for name in ENTRANTS if name in self._options.entrants]
        for lineup in make_lineups(chosen, self._config.num_parameters, room):
            self._run_lineup(lineup)
        return self._describe()

    def _run_lineup(self, lineup: Sequence[Entrant]) -> None:
        with self._start(lineup) as crew:
            before = measure_limits(crew)
            for turn in range(1 + self._options.repeats):
                crew.tell(f"turn {turn} of {self._options.repeats}: {', '.join(crew.present)}")
                for cell in self._cells:
                    before = self._run_cell(crew, cell, turn, before)
            self._note_memory(crew)
        self._absent |= crew.absent

    def _note_memory(self, crew: Crew) -> None:
        for name in crew.workers:
            peak = None if name == LIMITS else crew.ask_process(name, "peak_memory")
            if peak is not None:
                self._settings[name]["peak_memory_gb"] = round(peak / 1e9, 2)

    @contextmanager
    def _start(self, lineup: Sequence[Entrant]) -> Iterator[Crew]:
        crew, options = Crew(), self._options
        threads = str(options.threads)
        places = {"checkpoint": str(options.checkpoint), "models": str(options.peer_models)}
        try:
            script = str(RUNNERS / "limits_runner.py")
            crew.start(LIMITS, sys.executable, script, threads, str(options.bandwidth_bytes))
            for entrant in lineup:
                python = options.peers_python if entrant.is_peer else sys.executable
                self._enter(crew, entrant, python, threads, entrant.command(places))
            yield crew
        finally:
            crew.close()

    def _enter(
        self, crew: Crew, entrant: Entrant, python: str | None, threads: str, rest: list[str]
    ) -> None:
        """Start an entrant's process, or note why there is none."""
        if python is None:
            self._absent[entrant.name] = "no --peers-python"
            return
        script = str(RUNNERS / entrant.script)
        before = set(crew.settings)
        try:
            worker = crew.start(entrant.name, python, script, entrant.name, threads, *rest)
        except WorkerError as error:
            self._absent[entrant.name] = str(error)
            crew.tell(f"{entrant.name}: {error}")
            return
        self._versions |= worker.ask("versions")
        self._settings[entrant.name] = {"bits": entrant.bits, "arithmetic": entrant.arithmetic}
        self._entrants |= dict.fromkeys(set(crew.settings) - before, entrant)

    def _run_cell(self, crew: Crew, cell: Cell, turn: int, before: Limits) -> Limits:
        """One cell by everybody, between two measurements of the limits, whose second is given.

        The first turn warms up and is not kept.
        """
        prompts = cell.make_prompts(self._config.vocab_size, seed=turn)
        answers = {name: ask(crew, name, cell, prompts) for name in rotate(crew.present, turn)}
        after = measure_limits(crew)
        if turn:
            self._keep(crew, cell, answers, before.best(after))
        return after

    def _keep(
        self, crew: Crew, cell: Cell, answers: dict[str, dict[str, Any] | None], limits: Limits
    ) -> None:
        self._limits.append(limits)
        for name, answer in answers.items():
            if answer is not None:
                self._series(crew, name, cell).add(answer, limits)
                speed = cell.num_timed / answer["seconds"]
                crew.tell(f"  {cell.name}: {name}: {speed:.2f} tokens/s")

    def _series(self, crew: Crew, name: str, cell: Cell) -> Series:
        setting, row = crew.settings[name], self._table[cell.name]
        if name not in row:
            bytes_read = cell.count_bytes(setting["weight_bytes"], setting["cache_bytes"])
            row[name] = Series(
                cell,
                flops=cell.count_flops(self._config),
                attention_flops=cell.count_attention_flops(self._config),
                bytes_read=bytes_read,
                arithmetic=self._entrants[name].arithmetic,
            )
        return row[name]

    def _describe(self) -> dict[str, Any]:
        return {
            "parameters": self._config.num_parameters,
            "num_threads": self._options.threads,
            "versions": self._versions,
            "absent": self._absent,
            "entrants": self._settings,
            "limits": describe_limits(self._limits),
            "agreement": compare_tokens(self._table),
            "cells": {
                cell: {
                    name: {"bits": self._entrants[name].bits}
                    | {"arithmetic": series.arithmetic}
                    | series.summarise()
                    for name, series in row.items()
                }
                for cell, row in self._table.items()
            },
        }


def measure_limits(crew: Crew) -> Limits:
    worker = crew.workers[LIMITS]
    return Limits(worker.ask("bandwidth"), worker.ask("peaks"))


def ask(crew: Crew, name: str, cell: Cell, prompts: list[list[int]]) -> dict[str, Any] | None:
    if cell.num_steps:
        return crew.ask(name, "decode", prompts=prompts, num_steps=cell.num_steps)
    return crew.ask(name, "prefill", prompt=prompts[0])


def rotate(names: list[str], turn: int) -> list[str]:
    begin = turn % len(names) if names else 0
    return [*names[begin:], *names[:begin]]


def describe_limits(limits: Sequence[Limits]) -> dict[str, Any]:
    """All that were measured, in GB/s and GFLOP/s."""
    kinds = limits[0].peaks if limits else ()
    return {
        "bandwidth_gb": [round(x.bandwidth / 1e9, 1) for x in limits],
        "peak_gflops": {kind: [round(x.peaks[kind] / 1e9) for x in limits] for kind in kinds},
    }


def compare_tokens(table: Table) -> dict[str, Any]:
    """How many first tokens are the reference's, in all cells together."""
    rows = list(table.values())
    reference = next((name for name in REFERENCES if all(name in row for row in rows)), None)
    if reference is None:
        return {}
    settings = [name for name in rows[0] if all(name in row for row in rows)]
    counts = {
        name: [count_same(row[name].token_ids, row[reference].token_ids) for row in rows]
        for name in settings
        if name != reference
    }
    return {"reference": reference, "same_of": {k: sum_pairs(v) for k, v in counts.items()}}


def sum_pairs(pairs: Sequence[tuple[int, int]]) -> list[int]:
    return [sum(numbers) for numbers in zip(*pairs, strict=True)]


def make_table(figures: dict[str, Any]) -> str:
    """Tokens/s and the share of the limit, a line for each setting."""
    cells = figures["cells"]
    names = list(dict.fromkeys(name for row in cells.values() for name in row))
    lines = [" | ".join(["", *cells])]
    for name in names:
        found = [row.get(name) for row in cells.values()]
        words = [f"{x['tokens_per_second']} ({x['share_of_limit']})" if x else "" for x in found]
        lines.append(" | ".join([name, *words]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
