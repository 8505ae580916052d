"""phi-1's point in miniature: of the same number of tokens, the better half teaches more.

    python examples/textbook_filter.py FOLDER [--rows 12000] [--steps 300]

makes a corpus of which half is textbook-like text and half is junk, labels a small part of it,
fits a filter on what `tiny` makes of these texts, keeps the better half of the rest, and trains two
small models from nothing, one on everything and one on what was kept, for as many tokens. Both are
measured on new textbook-like text, of the same templates and of others that none of them saw. The
labels are ours, and known.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

import phiscope
from phiscope.checkpoint.hub import resolve
from phiscope.extraction.inputs import Fields, open_source
from phiscope.filtering import FilterOptions, LabelFields, fit_filter
from phiscope.training.corpora.building import build_corpus
from phiscope.training.corpora.options import CorpusOptions
from phiscope.training.corpora.shards import Shards
from phiscope.training.objective import Objective
from phiscope.training.optimizer import Rates
from phiscope.training.options import small_config
from phiscope.training.pretraining import Heldout, PretrainingOptions, pretrain
from phiscope.training.synthetic import Sample, SyntheticOptions, generate

TEXTBOOK = {"story": 2.0, "fact": 1.0, "qa": 1.0, "chat": 1.0, "code": 2.0}
HALF = {**TEXTBOOK, "junk": 7.0}
POINT = "resid_post.2"
LABELLED = 2000
SPLITS = ("train", "heldout")
"""Of the generator's templates."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder, for all that is made")
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    print(json.dumps(run(options.folder, options.rows, options.steps), indent=2))


def run(folder: Path, num_rows: int, steps: int) -> dict[str, object]:
    """Bits per byte of new textbook-like text, for both models, and the filter's AUROC."""
    web = list(generate(SyntheticOptions(seed=2, mix=HALF, split="train"), 0, num_rows))
    keep, auroc = filter_texts(folder, web)
    for split in SPLITS:
        build(
            folder / split, generate(SyntheticOptions(seed=3, mix=TEXTBOOK, split=split), 0, 1000)
        )
    figures: dict[str, object] = {
        "filter_auroc": auroc,
        "kept_textbook_share": share_of_textbook(keep),
    }
    for name, samples in {"everything": web, "filtered": keep}.items():
        build(folder / name, samples)
        figures[name] = train(folder, name, steps)
    return figures


def filter_texts(folder: Path, web: list[Sample]) -> tuple[list[Sample], float]:
    """The better half of the texts, by a filter that has seen labels of others."""
    labelled = list(generate(SyntheticOptions(seed=1, mix=HALF, split="train"), 0, LABELLED))
    rows = [
        {"id": x.id, "text": x.text, "label": x.labels["quality"], "template": x.template}
        for x in labelled
    ]
    data = folder / "labelled.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    phi = phiscope.load("tiny", mode="fp32-cpu")
    phi.extract(str(data), folder / "states", points=POINT, pool=["mean", "last"])
    fields = LabelFields(group="template")
    options = FilterOptions(head="logistic", positive="textbook", held_out=0.3, keep_rate=0.5)
    fitted = fit_filter(folder / "states", data, options, fields=fields)
    scores = fitted.score(phi, [sample.text for sample in web])
    best = sorted(range(len(web)), key=lambda index: -scores[index])[: len(web) // 2]
    return [web[index] for index in sorted(best)], round(fitted.report.head.auroc, 4)


def build(folder: Path, samples: Iterable[Sample]) -> None:
    """A corpus of tokens."""
    phi = phiscope.load_tokenizer(resolve("tiny"))
    texts = open_source([sample.text for sample in samples], Fields())
    build_corpus(texts, phi, folder, CorpusOptions(near_duplicates=None))


def train(folder: Path, name: str, steps: int) -> dict[str, float]:
    """Bits per byte of both kinds of new text, for a model trained on a corpus."""
    tokenizer = phiscope.load_tokenizer(resolve("tiny"))
    end = tokenizer.eos_token_id
    config = small_config(
        vocab_size=tokenizer.vocab_size, hidden_size=128, layers=3, heads=4, context=128
    )
    options = PretrainingOptions(
        out=folder / f"{name}-model",
        config=replace(config, bos_token_id=end, eos_token_id=end),
        corpora=((folder / name, 1.0),),
        tokenizer=resolve("tiny"),
        steps=steps,
        batch_windows=16,
        micro_windows=4,
        rates=Rates(warmup_steps=20),
        precision="fp32",
        packing="documents",
    )
    pretrain(options)
    objective = Objective(phiscope.load_model(options.out, dtype=torch.float32))
    texts = Heldout([Shards.open(folder / split) for split in SPLITS], tokenizer)
    figures = texts.measure(objective)
    return {f"{split}_templates": round(x.bits_per_byte, 4) for split, x in figures.items()}


def share_of_textbook(samples: list[Sample]) -> float:
    return round(sum(x.labels["quality"] == "textbook" for x in samples) / len(samples), 4)


if __name__ == "__main__":
    main()
