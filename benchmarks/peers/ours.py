"""Phiscope's process: one bf16 model, run in both modes, answering questions as the peers do.

    python ours.py CHECKPOINT [MODE ...]
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from outcome import Outcome, Setting, make_handlers
from pipe import serve
from torch import Tensor

from phiscope.api import TOKEN_BUDGET, Phi
from phiscope.checkpoint import load_model
from phiscope.config import read_config
from phiscope.packing import pack, plan_batches
from phiscope.runtime import MODES
from phiscope.tokenizer import load_tokenizer
from phiscope.wide import widen

REDUCERS = ("mean", "last")
KINDS = ("layer_pooled", "all_pooled", "layer_tokens", "prefill")


def main() -> None:
    folder, modes = Path(sys.argv[1]), sys.argv[2:]
    model = load_model(folder, dtype=torch.bfloat16)
    tokenizer = load_tokenizer(folder, read_config(folder))
    settings: dict[str, Setting] = {}
    for name in modes:
        mode = MODES[name]
        phi = Phi(widen(model) if mode.is_wide else model, tokenizer, mode)
        settings |= {setting.name: setting for setting in make_settings(phi)}
    weights = sum(x.numel() * x.element_size() for x in model.parameters())
    serve(make_handlers(settings) | {"weights": lambda: weights})


def make_settings(phi: Phi) -> list[Setting]:
    layers = phi.config.num_hidden_layers
    layer = [f"resid_post.{layers // 2}"]
    states = ["embeddings", *(f"resid_post.{i}" for i in range(layers - 1)), "final_norm"]
    runs: dict[str, Callable[[list[list[int]]], Outcome]] = {
        "layer_pooled": partial(run_pooled, phi, layer, states, "layer_pooled"),
        "all_pooled": partial(run_pooled, phi, states, states, "all_pooled"),
        "layer_tokens": partial(run_tokens, phi, layer[0]),
        "prefill": partial(run_prefill, phi),
    }
    return [
        Setting(
            name=f"phiscope {phi.mode.name}, {kind}",
            group=f"phiscope {phi.mode.name}",
            what=f"packed batches of at most {TOKEN_BUDGET} tokens, planned for each block",
            kinds=(kind,),
            run=run,
            takes_short=kind == "layer_pooled",
        )
        for kind, run in runs.items()
    ]


def run_pooled(
    phi: Phi, points: list[str], states: list[str], kind: str, texts: list[list[int]]
) -> Outcome:
    outcome = Outcome()
    with outcome.time(kind):
        values = extract(phi, texts, points, REDUCERS)
    outcome.pooled[kind] = {
        states.index(point): torch.stack([values[f"{point}.{x}"] for x in REDUCERS], dim=1)
        for point in points
    }
    return outcome


def run_tokens(phi: Phi, point: str, texts: list[list[int]]) -> Outcome:
    outcome = Outcome()
    with outcome.time("layer_tokens"):
        outcome.tokens = extract(phi, texts, [point], None)[point]
    return outcome


def extract(
    phi: Phi, texts: Sequence[list[int]], points: list[str], pool: Sequence[str] | None
) -> dict[str, Any]:
    """The one place that says how phiscope extracts."""
    return phi.capture(texts, points, pool=pool)


def run_prefill(phi: Phi, texts: list[list[int]]) -> Outcome:
    """The body of the model over the same batches, without a plan."""
    outcome = Outcome()
    with outcome.time("prefill"), torch.inference_mode():
        for rows in plan_batches([len(text) for text in texts], TOKEN_BUDGET):
            ids, packed = pack([texts[row] for row in rows])
            hidden: Tensor = phi.model.model(ids, packed)
    assert hidden.isfinite().all()
    return outcome


if __name__ == "__main__":
    main()
