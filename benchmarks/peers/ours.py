"""Phiscope's process: one model, run in modes of one dtype and device, answering as the peers do.

A block of texts is a shard of a job under way: read, computed, written, synced and journalled. What
a job does once, such as hashing the weights, is not timed.

    python ours.py CHECKPOINT TOKEN_BUDGET MODE ...
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from outcome import Outcome, Setting, make_handlers
from pipe import serve

from phiscope.api import Phi
from phiscope.checkpoint import load_model
from phiscope.config import read_config
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.inputs import Row
from phiscope.extraction.job import run_shard
from phiscope.extraction.options import ExtractOptions
from phiscope.extraction.progress import Progress
from phiscope.packing import pack, plan_batches
from phiscope.runtime import MODES
from phiscope.store import Store, StoreWriter, open_store
from phiscope.tokenizer import load_tokenizer
from phiscope.wide import widen

REDUCERS = ("mean", "last")
Texts = list[list[int]]
Run = Callable[[Texts, Outcome], None]
"""Takes texts, and what to add to."""


def main() -> None:
    folder, budget, modes = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    (dtype, device), *others = {(MODES[name].dtype, MODES[name].device) for name in modes}
    assert not others, "all modes share the weights"
    model = load_model(folder, dtype=dtype, device=device)
    tokenizer = load_tokenizer(folder, read_config(folder))
    settings: dict[str, Setting] = {}
    for name in modes:
        mode = MODES[name]
        phi = Phi(widen(model) if mode.is_wide else model, tokenizer, mode)
        settings[f"phiscope {name}"] = make_setting(phi, budget)
    weights = sum(x.numel() * x.element_size() for x in model.parameters())
    serve(make_handlers(settings) | {"weights": lambda: weights})


def make_setting(phi: Phi, budget: int) -> Setting:
    layers = phi.config.num_hidden_layers
    layer = f"resid_post.{layers // 2}"
    states = ["embeddings", *(f"resid_post.{i}" for i in range(layers - 1)), "final_norm"]
    runs: dict[str, Run] = {
        "layer_pooled": partial(run_pooled, phi, [layer], states, "layer_pooled", budget),
        "all_pooled": partial(run_pooled, phi, states, states, "all_pooled", budget),
        "layer_tokens": partial(run_tokens, phi, layer, budget),
        "prefill": partial(run_prefill, phi, budget),
    }
    return Setting(
        name=f"phiscope {phi.mode.name}",
        group=f"phiscope {phi.mode.name}",
        what=f"packed batches of at most {budget} tokens, written to a store in fp32 and synced",
        kinds=tuple(runs),
        run=partial(run_kinds, phi, runs),
        takes_short=True,
    )


def run_kinds(phi: Phi, runs: Mapping[str, Run], texts: Texts, kinds: tuple[str, ...]) -> Outcome:
    """Each kind by a run of its own."""
    phi.model.set_attention(phi.mode.attention)
    outcome = Outcome(device=torch.device(phi.mode.device))
    for kind in kinds:
        runs[kind](texts, outcome)
    return outcome


def run_pooled(
    phi: Phi,
    points: list[str],
    states: list[str],
    kind: str,
    budget: int,
    texts: Texts,
    outcome: Outcome,
) -> None:
    options = make_options(texts, points, budget, pool=REDUCERS)
    with extract(phi, texts, options, outcome, kind) as store:
        outcome.pooled[kind] = {
            states.index(point): torch.stack(
                [store.tensor(f"{point}.{reducer}").clone() for reducer in REDUCERS], dim=1
            )
            for point in points
        }


def run_tokens(phi: Phi, point: str, budget: int, texts: Texts, outcome: Outcome) -> None:
    options = make_options(texts, [point], budget)
    with extract(phi, texts, options, outcome, "layer_tokens") as store:
        outcome.tokens = list(store.tensor(point).clone().split([len(text) for text in texts]))


def make_options(
    texts: Texts, points: list[str], budget: int, pool: tuple[str, ...] = ()
) -> ExtractOptions:
    return ExtractOptions(
        points=points, pool=pool, dtype="float32", shard_size=len(texts), token_budget=budget
    )


@contextmanager
def extract(
    phi: Phi, texts: Texts, options: ExtractOptions, outcome: Outcome, kind: str
) -> Iterator[Store]:
    """The texts as the one shard of a store, which is there until the block ends."""
    extractor = Extractor(phi.model, phi.tokenizer, options)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "store"
        with StoreWriter.open(
            out, extractor.schema, job={}, shard_size=len(texts), resume=False
        ) as writer:
            with outcome.time(kind):
                rows = [Row(index=i, id=str(i), ids=tuple(text)) for i, text in enumerate(texts)]
                run_shard(extractor, writer, 0, rows, Progress(extractor))
            writer.finish()
        yield open_store(out)


def run_prefill(phi: Phi, budget: int, texts: Texts, outcome: Outcome) -> None:
    """The body of the model over the same batches, without a plan."""
    with outcome.time("prefill"), torch.inference_mode():
        for rows in plan_batches([len(text) for text in texts], budget):
            ids, packed = pack([texts[row] for row in rows], device=phi.mode.device)
            phi.model.model(ids, packed)


if __name__ == "__main__":
    main()
