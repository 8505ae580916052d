"""The model that all peers share: its weights are in memory once."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import nn


@dataclass(frozen=True)
class Source:
    """The model that all peers share, and the layer whose output is wanted."""

    folder: Path
    model: transformers.PhiForCausalLM
    layer: int

    @property
    def state(self) -> int:
        """The number of the layer's output among the hidden states."""
        return self.layer + 1

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def num_layers(self) -> int:
        return self.model.config.num_hidden_layers

    @property
    def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        return transformers.AutoTokenizer.from_pretrained(self.folder)

    def make_shell(self) -> transformers.PhiForCausalLM:
        config = copy.deepcopy(self.model.config)
        with torch.device("meta"):
            shell = type(self.model)(config)
        shell.load_state_dict(self.model.state_dict(), assign=True)
        shell.model.rotary_emb = type(self.model.model.rotary_emb)(config).to(self.device)
        return shell.eval().requires_grad_(False)

    def make_body(self) -> transformers.PhiModel:
        """The embeddings and the blocks up to the layer; what it returns is the layer's output."""
        body = self.make_shell().model
        body.layers = body.layers[: self.state]
        body.config.num_hidden_layers = self.state
        body.final_layernorm = nn.Identity()
        return body


def load_source(folder: Path, dtype: torch.dtype, device: str) -> Source:
    """Load the model; the files that transformers maps are copied: nobody waits for them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    model = model.to(device)
    return Source(folder, model.eval().requires_grad_(False), model.config.num_hidden_layers // 2)
