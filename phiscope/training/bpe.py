"""Training a byte-level BPE of the Phi kind: GPT-2's splitting, and runs of white space as tokens.

Ids run as in Phi's own tokenizer: the bytes, the merges, `<|endoftext|>`, then the runs from the
longest to the shortest, blanks before tabs. A run is matched before the BPE sees the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from phiscope.training.bars import shown
from phiscope.training.corpus import Document

END_TOKEN = "<|endoftext|>"
NUM_BYTES = 256
_RUN = re.compile(r" {2,}|\t{2,}")


def whitespace_runs(longest_blanks: int = 31, longest_tabs: int = 9) -> list[str]:
    """The runs that are tokens, in the order of their ids."""
    blanks = [" " * count for count in range(longest_blanks, 1, -1)]
    return blanks + ["\t" * count for count in range(longest_tabs, 1, -1)]


def train_bpe(
    documents: Iterable[Document], vocab_size: int, runs: Iterable[str] | None = None
) -> Tokenizer:
    """Learn a tokenizer of exactly `vocab_size` ids from the documents.

    `runs` are the white-space tokens (default: Phi's 38); raises `ValueError` if the vocabulary
    cannot hold the bytes, the runs and the end token.
    """
    added = list(whitespace_runs() if runs is None else runs)
    learned = vocab_size - len(added) - 1
    if learned < NUM_BYTES:
        raise ValueError(
            f"a vocabulary of {vocab_size} cannot hold {NUM_BYTES} bytes, {len(added)} runs of "
            f"white space and {END_TOKEN}; at least {NUM_BYTES + len(added) + 1} are needed"
        )
    tokenizer = _empty_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=learned,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(documents), trainer=trainer)
    tokenizer.add_special_tokens([AddedToken(END_TOKEN, special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken(run, special=False, normalized=False) for run in added])
    return tokenizer


def _empty_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pieces(documents: Iterable[Document]) -> Iterator[list[str]]:
    """What the BPE sees of each document: the text between the runs."""
    for document in shown(documents, "tokenizer, documents"):
        yield [piece for piece in _RUN.split(document.text) if piece]
