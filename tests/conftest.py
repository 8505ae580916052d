import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread():
    """Leave the number of threads as it was found, whatever a test sets."""
    yield
    torch.set_num_threads(1)
