import shutil
from pathlib import Path

import pytest
from small_documents import make_documents

from phiscope.training.corpus import Document
from phiscope.training.optimizer import Rates
from phiscope.training.options import TrainingOptions, small_config
from phiscope.training.report import TrainingReport
from phiscope.training.trainer import train


def write_corpus(root: Path) -> Path:
    root.mkdir()
    for document in make_documents():
        (root / document.name).write_text(document.text)
    return root


def make_options(out: Path, corpus: Path) -> TrainingOptions:
    """A run of seconds."""
    return TrainingOptions(
        out=out,
        name="mote",
        config=small_config(vocab_size=320, hidden_size=16, layers=2, heads=2, context=32),
        corpus=(corpus,),
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


@pytest.fixture
def documents() -> list[Document]:
    return make_documents()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


@pytest.fixture
def options(tmp_path: Path, folder: Path) -> TrainingOptions:
    return make_options(tmp_path / "model", folder)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingReport:
    """The report of a finished run of such options, whose folders no test changes."""
    root = tmp_path_factory.mktemp("trained")
    return train(make_options(root / "model", write_corpus(root / "corpus")))


@pytest.fixture
def finished(trained: TrainingReport, options: TrainingOptions) -> TrainingOptions:
    """The options of such a run, of which the run's folder is there and the model's is gone."""
    shutil.copytree(trained.folder.with_name("model.run"), options.run_folder)
    return options
