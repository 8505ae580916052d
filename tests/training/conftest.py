import random
from pathlib import Path

import pytest

from phiscope.training.corpus import Document
from phiscope.training.optimizer import Rates
from phiscope.training.options import TrainingOptions, small_config

WORDS = (
    *("token", "block", "head", "state", "layer", "norm", "query"),
    *("value", "rotate", "attend", "mask", "step", "loss", "cache"),
)


def write_text(seed: int) -> str:
    """Sentences that no other seed gives, in a language that can be learned."""
    draw = random.Random(seed)
    lines = []
    for number in range(12):
        words = " ".join(draw.choices(WORDS, k=7))
        lines.append(f"def line_{number}():\n    return '{words}'\n")
    return "".join(lines)


@pytest.fixture
def documents() -> list[Document]:
    return [Document(f"document{seed}.py", write_text(seed)) for seed in range(40)]


@pytest.fixture
def folder(tmp_path: Path, documents: list[Document]) -> Path:
    root = tmp_path / "corpus"
    root.mkdir()
    for document in documents:
        (root / document.name).write_text(document.text)
    return root


@pytest.fixture
def options(tmp_path: Path, folder: Path) -> TrainingOptions:
    """A run of seconds."""
    return TrainingOptions(
        out=tmp_path / "model",
        name="mote",
        config=small_config(vocab_size=320, hidden_size=16, layers=2, heads=2, context=32),
        corpus=(folder,),
        stdlib=False,
        heldout_share=0.15,
        whitespace_runs=(4, 2),
        steps=6,
        batch_windows=4,
        micro_windows=2,
        rates=Rates(matrix_lr=0.02, other_lr=0.01, warmup_steps=2),
        precision="fp32",
        threads=2,
        eval_every=3,
        save_every=3,
    )
