import io
import sys
from pathlib import Path

import pytest
import tokenizers
import torch

from phiscope.checkpoint import save_checkpoint
from phiscope.cli import main
from phiscope.config import PhiConfig
from phiscope.model import PhiForCausalLM
from phiscope.tokenizer import Tokenizer, byte_symbols

CONFIG = PhiConfig(
    vocab_size=264,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=128,
    rotary_dim=4,
    initializer_range=0.3,
    bos_token_id=256,
    eos_token_id=256,
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A random model of two blocks whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("models") / "random"
    model = PhiForCausalLM(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    save_checkpoint(model, folder)
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.add_special_tokens([tokenizers.AddedToken("<|endoftext|>")])
    Tokenizer(backend).save(folder)
    return folder


@pytest.fixture
def run(capfd):
    """Run a command in this process and give its exit code, stdout and stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in argv])
        except SystemExit as exit:  # argparse's
            code = exit.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def run_model(run, folder):
    """The same on the random model."""
    return lambda *argv: run(*argv, "--model", folder, "--mode", "fp32-cpu")


@pytest.fixture
def type_in(monkeypatch):
    """Have a command find these bytes on stdin."""

    def type_in(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    return type_in
