"""Held-out bits per byte of an embedded model beside those of `xz` given the same training text.

The corpus must be the one the model was trained on, or what is held out here may have been seen
there: the hash in the model's card is compared. `xz -9e` is charged what the held-out text adds to
the compressed training text, with a dictionary that holds both.

    python benchmarks/tiny_vs_xz.py [--model phiscope/models/tiny] [--corpus PATH ...]
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measure import write_result

from phiscope.checkpoint import load_model
from phiscope.model import PhiForCausalLM
from phiscope.tokenizer import Tokenizer, load_tokenizer
from phiscope.training.compression import xz_bits_per_byte
from phiscope.training.corpus import Corpus, Document
from phiscope.training.documents import read_tokens, write_tokens
from phiscope.training.heldout import Figure, byte_lengths, measure
from phiscope.training.options import preset_options
from phiscope.training.preparation import training_corpus

MODELS = Path(__file__).resolve().parent.parent / "phiscope" / "models"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODELS / "tiny")
    parser.add_argument("--corpus", type=Path, nargs="*", default=[], help="as in training")
    options = parser.parse_args()
    corpus = read_same_corpus(options.model, options.corpus)
    model = load_model(options.model, dtype=torch.float32)
    tokenizer = load_tokenizer(options.model)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        look = partial(look_at, model, tokenizer, pool=pool)
        figures = {
            "model": options.model.name,
            "corpus": corpus.digest,
            "train_bytes": sum(one.num_bytes for one in corpus.train),
            "heldout_bytes": sum(one.num_bytes for one in corpus.heldout),
            "heldout_documents": len(corpus.heldout),
            "bits_per_byte": {
                "model, half a window before each token": look(corpus.heldout, overlap=0.5),
                "model, windows that begin blind": look(corpus.heldout, overlap=0.0),
                "xz -9e given the training text": round(xz_bits_per_byte(corpus), 4),
                "xz -9e alone": round(xz_bits_per_byte(Corpus((), corpus.heldout)), 4),
                "by kind": {
                    kind: look(documents, overlap=0.5)
                    for kind, documents in by_kind(corpus.heldout).items()
                },
            },
        }
    write_result(f"{options.model.name}_vs_xz", figures)


def read_same_corpus(model: Path, paths: Sequence[Path]) -> Corpus:
    """The corpus of the model's card, or an end with the reason."""
    options = preset_options(model.name, model, corpus=tuple(paths))
    corpus = training_corpus(options)
    if corpus.digest not in (model / "README.md").read_text(encoding="utf-8"):
        sys.exit(
            f"this is not the text {model.name} was trained on (hash {corpus.digest}); take the "
            "Python and the --corpus that its README.md names"
        )
    return corpus


def look_at(
    model: PhiForCausalLM,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    overlap: float,
    pool: ThreadPoolExecutor,
) -> float:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "heldout.tokens"
        write_tokens(documents, tokenizer, path)
        tokens, lengths = read_tokens(path), byte_lengths(tokenizer)
        figure: Figure = measure(model, tokens, lengths, overlap=overlap, apply=pool.map)
        return round(figure.bits_per_byte, 4)


def by_kind(documents: Sequence[Document]) -> dict[str, list[Document]]:
    kinds: dict[str, list[Document]] = {}
    for document in documents:
        kinds.setdefault(kind_of(document.name), []).append(document)
    return kinds


def kind_of(name: str) -> str:
    if not name.endswith(".py"):
        return "documentation"
    return "tests" if "test" in name else "modules"


if __name__ == "__main__":
    main()
