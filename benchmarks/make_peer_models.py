"""Convert a checkpoint for the peers of the speed benchmark: llama.cpp, OpenVINO, CTranslate2.

It needs the peers' environment (`speed_peers.txt` says how it is made) and a checkpoint of layout
D with its tokenizer, which `make_checkpoint.py` writes. At full size it needs 16 GB of memory and
takes a few minutes; what is there already stays.

    PYTHONPATH=. PEERS_PYTHON benchmarks/make_peer_models.py CHECKPOINT OUT [--only KIND ...]
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from peer_models.ctranslate2_folder import write_ctranslate2
from peer_models.gguf_file import QUANTISED, quantise, write_gguf
from torch import Tensor

from phiscope.checkpoint import load_model
from phiscope.config import read_config

TOKENIZER = "tokenizer.json"
OPENVINO_FORMATS = ("int8", "int4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=MAKERS, default=MAKERS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for kind in options.only:
        MAKERS[kind](options.checkpoint, options.out)


def make_gguf(checkpoint: Path, out: Path) -> None:
    source = out / "F16.gguf"
    if not source.exists():
        config, tokenizer = read_config(checkpoint), checkpoint / TOKENIZER
        write_gguf(source, config, read_state(checkpoint), tokenizer)
    for name, kind in QUANTISED.items():
        path = out / f"{name}.gguf"
        if not path.exists():
            quantise(source, path, kind)


def make_ctranslate2(checkpoint: Path, out: Path) -> None:
    path = out / "ctranslate2-int8"
    if not path.exists():
        config, tokenizer = read_config(checkpoint), checkpoint / TOKENIZER
        write_ctranslate2(path, config, read_state(checkpoint), tokenizer)


def make_openvino(checkpoint: Path, out: Path) -> None:
    """By the command that users are told to run; int4 is in groups of 128, its head in int8."""
    tool = Path(sys.executable).parent / "optimum-cli"
    for name in OPENVINO_FORMATS:
        path = out / f"openvino-{name}"
        if not path.exists():
            command = [str(tool), "export", "openvino", "--model", str(checkpoint)]
            command += ["--task", "text-generation-with-past", "--weight-format", name, str(path)]
            subprocess.run(command, check=True)


MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "gguf": make_gguf,
    "ctranslate2": make_ctranslate2,
    "openvino": make_openvino,
}


def read_state(checkpoint: Path) -> Mapping[str, Tensor]:
    return load_model(checkpoint, dtype=torch.bfloat16).state_dict()


if __name__ == "__main__":
    main()
