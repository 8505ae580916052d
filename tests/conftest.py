import gc

import pytest
import torch

gc.disable()  # imports leave no garbage, and looking for it takes nearly as long as they do
torch.set_num_threads(1)


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
