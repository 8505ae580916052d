"""From text to tokens: what a run does before its first step, and finds when it is resumed."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from phiscope.config import PhiConfig
from phiscope.tokenizer import Tokenizer
from phiscope.training.bpe import train_bpe, whitespace_runs
from phiscope.training.corpus import Corpus, read_corpus
from phiscope.training.documents import Ids, Windows, read_tokens, write_tokens
from phiscope.training.heldout import byte_lengths
from phiscope.training.options import TrainingOptions
from phiscope.training.questions import make_questions


@dataclass(frozen=True)
class Data:
    """A corpus in the form that training reads."""

    tokenizer: Tokenizer
    config: PhiConfig
    """The model's config with the tokenizer's end token in it."""
    windows: Windows
    heldout: Ids
    lengths: Ids
    """Bytes of text that each id stands for."""
    corpus: Corpus

    @property
    def num_bytes(self) -> tuple[int, int]:
        """Bytes of training text and of held-out text."""
        sides = (self.corpus.train, self.corpus.heldout)
        train, heldout = (sum(document.num_bytes for document in side) for side in sides)
        return train, heldout

    @property
    def num_documents(self) -> tuple[int, int]:
        """Training and held-out documents."""
        return len(self.corpus.train), len(self.corpus.heldout)


def prepare(options: TrainingOptions, folder: Path) -> Data:
    """Read the corpus, train the tokenizer on its training side, and write both sides as tokens.

    What lies in `folder` from an earlier sitting is used if it was made of the same text.
    """
    corpus = training_corpus(options)
    tokenizer = _tokenize(corpus, options, folder)
    end = tokenizer.eos_token_id
    config = dataclasses.replace(options.config, bos_token_id=end, eos_token_id=end)
    windows = Windows(read_tokens(folder / "train.tokens"), options.context, options.seed)
    return Data(
        tokenizer=tokenizer,
        config=config,
        windows=windows,
        heldout=read_tokens(folder / "heldout.tokens"),
        lengths=byte_lengths(tokenizer),
        corpus=corpus,
    )


def training_corpus(options: TrainingOptions) -> Corpus:
    """The documents of a run: those read, and the questions made of the training side."""
    corpus = read_corpus(options.corpus, stdlib=options.stdlib, heldout_share=options.heldout_share)
    if not options.questions:
        return corpus
    questions = tuple(make_questions(corpus.train))
    return dataclasses.replace(corpus, train=corpus.train + questions)


def _tokenize(corpus: Corpus, options: TrainingOptions, folder: Path) -> Tokenizer:
    made_of = {
        "corpus": corpus.digest,
        "vocab_size": options.config.vocab_size,
        "whitespace_runs": list(options.whitespace_runs),
        "context": options.context,
    }
    record, file = folder / "tokens.json", folder / "tokenizer.json"
    if record.exists() and json.loads(record.read_text()) == made_of:
        return Tokenizer(tokenizers.Tokenizer.from_file(str(file)))
    record.unlink(missing_ok=True)
    runs = whitespace_runs(*options.whitespace_runs)
    tokenizer = Tokenizer(train_bpe(corpus.train, options.config.vocab_size, runs))
    tokenizer.backend.save(str(file))
    train, heldout = folder / "train.tokens", folder / "heldout.tokens"
    write_tokens(corpus.train, tokenizer, train, multiple_of=options.context)
    write_tokens(corpus.heldout, tokenizer, heldout)
    record.write_text(json.dumps(made_of))
    return tokenizer
