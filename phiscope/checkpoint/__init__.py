"""Checkpoints: folders of weights in four layouts, read, written, converted and checked.

`transfer` moves weights between folders and models; `layouts` says which stored rows are which of
ours; `weights` and below are the files themselves.
"""

from phiscope.checkpoint.folder import Checkpoint, find_dtype
from phiscope.checkpoint.inspection import Summary, Verification, describe, verify
from phiscope.checkpoint.quantization import load_integers, quantize
from phiscope.checkpoint.transfer import (
    SHARD_SIZE,
    TOKENIZER_FILES,
    convert,
    load_model,
    save_checkpoint,
    write_checkpoint,
)

__all__ = [
    "SHARD_SIZE",
    "TOKENIZER_FILES",
    "Checkpoint",
    "Summary",
    "Verification",
    "convert",
    "describe",
    "find_dtype",
    "load_integers",
    "load_model",
    "quantize",
    "save_checkpoint",
    "verify",
    "write_checkpoint",
]
