"""Corpora of a few bytes, for tests of what writes and reads them."""

import random
from itertools import accumulate
from pathlib import Path

import numpy as np
import tokenizers
from store.faulty_disk import UnsyncedDisk

from phiscope.extraction.inputs import open_source
from phiscope.tokenizer import Tokenizer, byte_symbols
from phiscope.training.corpora.building import build_corpus
from phiscope.training.corpora.options import CorpusOptions
from phiscope.training.corpora.records import PARTS, Manifest, ShardRecord
from phiscope.training.corpora.shards import Shards

WORDS = (
    *("token", "block", "head", "state", "layer", "norm", "query", "value", "rotate"),
    *("attend", "mask", "step", "loss", "cache", "the", "a", "of", "reads", "writes"),
)


def make_byte_tokenizer(num_tokens=256):
    """One token for each byte, unused ones up to `num_tokens`, and the end token."""
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    vocab |= {f"unused{index}": index for index in range(256, num_tokens)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.add_special_tokens([tokenizers.AddedToken("<|endoftext|>")])
    return Tokenizer(backend)


def write_sentence(seed, num_words=30):
    """Words that no other seed gives."""
    return " ".join(random.Random(seed).choices(WORDS, k=num_words)) + f" {seed}"


def make_options(**options):
    """Options that keep what is alike, unless they are told."""
    return CorpusOptions(**{"near_duplicates": None, "shard_tokens": 600} | options)


def build(data, tokenizer, folder, disk=None, **options):
    source = open_source(data)
    disk = disk or UnsyncedDisk()
    return build_corpus(source, tokenizer, folder, make_options(**options), disk=disk)


def read_files(folder):
    """The bytes of all files of a folder, by their names."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make_shards(*lengths, name="tokenizer"):
    """Shards in memory of documents so long, where the id at each place is the place's number."""
    borders = tuple(np.cumsum(one, dtype=np.int64) for one in lengths)
    starts = list(accumulate((int(one[-1]) for one in borders), initial=0))
    tokens = tuple(
        np.arange(start, start + int(one[-1]), dtype=np.uint32)
        for start, one in zip(starts, borders, strict=False)
    )
    return Shards(Path("memory"), "train", _make_manifest(lengths, name), tokens, borders)


def _make_manifest(lengths, name):
    num_tokens = sum(map(sum, lengths))
    tokenizer = {"sha256": name, "vocab_size": num_tokens, "eos_token_id": 0}
    records = [
        ShardRecord(
            num_documents=len(one),
            num_tokens=sum(one),
            num_bytes=sum(one),
            num_rows=1,
            input_sha256="0" * 64,
            tokens_sha256=f"{number:064d}",
            borders_sha256=f"{sum(one):064d}",
        )
        for number, one in enumerate(lengths)
    ]
    return Manifest(
        header={"tokenizer": tokenizer, "dtype": "uint32", "options": {}},
        parts={part: records if part == "train" else [] for part in PARTS},
        num_rows=1,
        input_sha256="0" * 64,
        drops={},
        num_replaced=0,
        faults=[],
    )
