"""Loading: a model by name, with its tokenizer and in its mode, in this process or in another."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from phiscope.checkpoint import find_dtype, load_integers, load_model
from phiscope.checkpoint.hub import EMBEDDED, resolve
from phiscope.config import read_config
from phiscope.inference import prepare
from phiscope.model import PhiForCausalLM
from phiscope.runtime import Mode, select_mode
from phiscope.tokenizer import Tokenizer, load_tokenizer


class Loaded(NamedTuple):
    """A model, its tokenizer, and the mode they run in."""

    model: PhiForCausalLM
    tokenizer: Tokenizer
    mode: Mode


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which model is loaded, and how: a few words that can be sent to another process."""

    name: str
    """A folder, a hub id, or the name of an embedded model."""
    mode: str = "auto"
    layers: int | None = None
    """Blocks to load; None: all, and the head."""
    revision: str | None = None
    num_threads: int | None = None
    """Torch's threads from then on; None: as many as there are."""
    mapped: bool = False
    """Whether weights of floats may stay in their files, where a CPU can use them as they lie."""

    def find(self) -> Path:
        """The checkpoint's folder; it is fetched first where the name is a hub id."""
        return resolve(self.name, revision=self.revision)

    def load(self, *, progress: bool = False) -> Loaded:
        """Load it into this process.

        Raises `HubError`, `ConfigError`, `CheckpointError` or `TokenizerError` for what cannot be
        opened and `UnsupportedError` for a mode that this machine lacks.
        """
        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        folder = self.find()
        config = read_config(folder)
        stored = config.quantization or (find_dtype(folder) if self.mode == "auto" else None)
        mode = select_mode(self.mode, num_parameters=config.num_parameters, stored=stored)
        with ThreadPoolExecutor(1) as pool:  # beside the weights, for it takes a third of a second
            tokenizer = pool.submit(load_tokenizer, folder, config)
            model = self._load_weights(folder, mode, progress=progress)
        return Loaded(prepare(model, mode), tokenizer.result(), mode)

    def _load_weights(self, folder: Path, mode: Mode, *, progress: bool) -> PhiForCausalLM:
        if mode.weights is not None and mode.device == "cpu":
            wide = mode.has_wide_products
            return load_integers(
                folder, mode.weights, wide=wide, layers=self.layers, progress=progress
            )
        return load_model(
            folder,
            dtype=mode.dtype,
            device=mode.device,
            layers=self.layers,
            progress=progress,
            mapped=self.mapped,
        )

    def settle(self, num_threads: int | None = None) -> "ModelSpec":
        """The same for a process in another working folder, with these threads if it names none."""
        folder = os.path.expanduser(self.name)
        is_folder = self.name not in EMBEDDED and os.path.isdir(folder)
        return replace(
            self,
            name=os.path.abspath(folder) if is_folder else self.name,
            num_threads=self.num_threads or num_threads,
        )
