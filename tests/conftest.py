import gc

import pytest
import torch

gc.disable()  # imports leave no garbage, and looking for it takes nearly as long as they do
torch.set_num_threads(1)

LONG_FILES = (
    "test_ray_job.py",
    "test_transformers_suite.py",
    "test_compilation.py",
    "test_checkpoint.py",
    "test_faults_terminal.py",
    "test_export.py",
    "test_hub.py",
)


def pytest_collection_modifyitems(items):
    """Begin with the longest files: workers take whole files, and shall end at the same time."""
    ranks = {name: rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def pytest_collection_finish():
    """Look for garbage from here on, among what the tests make only, and not at every turn."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture(autouse=True)
def _one_thread():
    """Leave the number of threads as it was found, whatever a test sets."""
    yield
    torch.set_num_threads(1)
