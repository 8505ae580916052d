"""Opening: a model by its name, with its tokenizer, in the mode it is to run in."""

from pathlib import Path

import torch

from phiscope.checkpoint import load_model
from phiscope.checkpoint.hub import resolve
from phiscope.config import read_config
from phiscope.model import PhiForCausalLM
from phiscope.runtime import Mode, select_mode
from phiscope.tokenizer import Tokenizer, load_tokenizer
from phiscope.wide import widen


def open_model(
    name: str | Path,
    *,
    mode: str = "auto",
    layers: int | None = None,
    revision: str | None = None,
    num_threads: int | None = None,
    progress: bool = False,
) -> tuple[PhiForCausalLM, Tokenizer, Mode]:
    """A model, its tokenizer and its mode: see `phiscope.load`."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    folder = resolve(str(name), revision=revision)
    config = read_config(folder)
    chosen = select_mode(mode, num_parameters=config.num_parameters)
    tokenizer = load_tokenizer(folder, config)
    model = load_model(
        folder, dtype=chosen.dtype, device=chosen.device, layers=layers, progress=progress
    )
    model = widen(model) if chosen.is_wide else model
    model.set_attention(chosen.attention)
    return model, tokenizer, chosen
