import pytest
import torch

from phiscope.finite import all_finite
from phiscope.kernels import build

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.fixture(autouse=True, params=["kernels", "numpy"])
def choose_kernels(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(build, "find_obstacle", lambda: "none")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_finiteness_is_told_right_for_every_16_bit_number(dtype):
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    finite = numbers.isfinite()
    assert all_finite(numbers[finite])
    for number in numbers[~finite]:
        assert not all_finite(number)


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_number_that_is_not_finite_is_found_among_many(dtype):
    sound = torch.randn(1000).to(dtype)
    limits = torch.finfo(dtype)
    sound[:4] = torch.tensor([limits.max, limits.min, limits.tiny, -0.0], dtype=dtype)
    assert all_finite(sound)
    for bad in (float("nan"), -float("nan"), float("inf"), -float("inf")):
        for place in (0, 500, 999):
            damaged = sound.clone()
            damaged[place] = bad
            assert not all_finite(damaged)


def test_what_is_empty_is_finite_and_integers_are():
    assert all_finite(torch.empty(0))
    assert all_finite(torch.tensor([2**31 - 1]))


def test_strided_numbers_are_looked_at_alone():
    numbers = torch.tensor([[1.0, torch.inf], [2.0, torch.nan]])
    assert all_finite(numbers[:, 0])
    assert not all_finite(numbers[:, 1])
