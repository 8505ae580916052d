"""The training loop: windows in, a model's folder out.

`train` prepares the text, takes the steps, measures the held-out text and writes the folder. A run
that is stopped (Ctrl-C, or a kill) saves where it stands and goes on with `resume=True`.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from phiscope.checkpoint import load_model
from phiscope.errors import TrainingError
from phiscope.model import PhiForCausalLM
from phiscope.training.allocation import freed_memory_kept
from phiscope.training.card import publish, write_model
from phiscope.training.compression import xz_bits_per_byte
from phiscope.training.heldout import Figure, measure
from phiscope.training.optimizer import make_optimizers
from phiscope.training.options import TrainingOptions
from phiscope.training.precision import select_precision
from phiscope.training.preparation import prepare
from phiscope.training.report import TrainingReport
from phiscope.training.state import load_state, save_state
from phiscope.training.steps import Run, take_step


def train(options: TrainingOptions) -> TrainingReport:
    """Train a model and write its folder, with a progress line on stderr where that is a terminal.

    Raises `TrainingError` where there is no text, where `resume` finds nothing of this run, where a
    run lies in the folder already and `resume` is not given, or where the loss is no number;
    `KeyboardInterrupt` after saving, if it was stopped.
    """
    _check_folders(options)
    options = dataclasses.replace(options, threads=options.threads or torch.get_num_threads())
    options.run_folder.mkdir(parents=True, exist_ok=True)
    with _threads(options.threads) as pool, freed_memory_kept():
        run = _set_up(options, pool)
        if options.resume:
            run.progress = load_state(run.state, run.identity, run.model, run.optimizers)
            _drop_rows_behind(run.progress.step, run.metrics)
        with _stopped_by_signals(run.stop):
            _take_steps(run)
        return _finish(run)


def _check_folders(options: TrainingOptions) -> None:
    out, run = options.out, options.run_folder
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} is there already and is not empty; give a new folder")
    if (run / "state.pt").exists() and not options.resume:
        raise TrainingError(f"{run} holds a run; go on with resume, or give another folder")
    if options.resume and not (run / "state.pt").exists():
        raise TrainingError(f"nothing to resume: there is no {run / 'state.pt'}")


def _set_up(options: TrainingOptions, pool: ThreadPoolExecutor) -> Run:
    _say("reading and tokenizing the text")
    data = prepare(options, options.run_folder)
    train_bytes, heldout_bytes = data.num_bytes
    _say(
        f"{train_bytes / 1e6:.1f} MB in {len(data.windows.tokens):,} tokens to train on, "
        f"{heldout_bytes / 1e6:.2f} MB held out"
    )
    model = PhiForCausalLM(data.config)
    model.init_weights(torch.Generator().manual_seed(options.seed))
    torch.manual_seed(options.seed)
    model.train()
    products = select_precision(options.precision)
    optimizers = make_optimizers(model, options.rates)
    _say(f"{data.config.num_parameters:,} parameters, products in {products}")
    return Run(options, data, model, optimizers, products, pool)


def _take_steps(run: Run) -> None:
    options, progress = run.options, run.progress
    with (
        tqdm(
            total=options.steps, initial=progress.step, unit="step", disable=None, file=sys.stderr
        ) as bar,
        run.metrics.open("a", encoding="utf-8") as metrics,
    ):
        while run.share < 1.0:
            begin = time.perf_counter()
            figures = take_step(run)
            progress.seconds += time.perf_counter() - begin
            if progress.step % options.eval_every == 0:
                run.bits_per_byte = _look(run).bits_per_byte
                figures["heldout_bits_per_byte"] = run.bits_per_byte
            _record(run, figures, metrics, bar)
            if run.stop.is_set() or progress.step % options.save_every == 0:
                _save(run)
            if run.stop.is_set():
                raise KeyboardInterrupt
    _save(run)


def _drop_rows_behind(step: int, metrics: Path) -> None:
    """Forget the steps that a run took after its last saved state, and takes again."""
    if metrics.exists():
        rows = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= step]
        metrics.write_text("".join(kept), encoding="utf-8")


def _look(run: Run) -> Figure:
    data, limit = run.data, run.options.eval_tokens
    return measure(run.model, data.heldout, data.lengths, limit=limit, apply=run.pool.map)


def _record(run: Run, figures: dict[str, float], metrics: Any, bar: Any) -> None:
    progress = run.progress
    row = {"step": progress.step, "seconds": round(progress.seconds, 1), **figures}
    metrics.write(json.dumps(row) + "\n")
    metrics.flush()
    shown = {
        "loss": f"{progress.loss:.3f}",
        "bits/byte": "-" if run.bits_per_byte is None else f"{run.bits_per_byte:.3f}",
        "lr": f"{figures['rate']:.2f}",
        "tokens/s": f"{figures['tokens_per_second']:.0f}",
    }
    bar.set_postfix(shown, refresh=False)
    bar.update()


def _save(run: Run) -> None:
    save_state(run.state, run.identity, run.progress, run.model, run.optimizers)


def _finish(run: Run) -> TrainingReport:
    """Write the model, measure all held-out text with the weights as written, and publish it."""
    _say("writing the model, measuring the held-out text, and xz on the same (about a minute)")
    options, data = run.options, run.data
    written = write_model(options, run.model, data.tokenizer)
    model = load_model(written, dtype=torch.float32)
    look = partial(measure, model, data.heldout, data.lengths, apply=run.pool.map)
    train_bytes, heldout_bytes = data.num_bytes
    report = TrainingReport(
        name=options.name,
        folder=options.out,
        num_parameters=data.config.num_parameters,
        steps=run.progress.step,
        seconds=run.progress.seconds,
        tokens=run.progress.step * options.batch_windows * options.context,
        train_bytes=train_bytes,
        train_tokens=len(data.windows.tokens),
        heldout_bytes=heldout_bytes,
        num_documents=data.num_documents,
        corpus_digest=data.corpus.digest,
        loss=run.progress.loss,
        heldout=look(overlap=0.5),
        heldout_blind=look(),
        xz_bits_per_byte=xz_bits_per_byte(data.corpus),
        precision=str(run.products).removeprefix("torch."),
    )
    publish(written, options, report)
    return report


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


@contextmanager
def _threads(count: int | None) -> Iterator[ThreadPoolExecutor]:
    """Workers that compute with one thread each, so that none waits for another in every product.

    On a machine with other work to do, one held-up thread of a product holds up the whole.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(
            count or before, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Have Ctrl-C and a kill set `stop`, so that a run ends between two steps."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(name, lambda *_: stop.set()) for name in names]
    try:
        yield
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)
