from itertools import pairwise

import pytest
import torch

from phiscope.model import PhiForCausalLM
from phiscope.training.optimizer import (
    Rates,
    make_optimizers,
    schedule,
    set_rates,
    split_parameters,
)
from phiscope.training.options import small_config

RATES = Rates(warmup_steps=10, decay_share=0.4)


@pytest.fixture
def model():
    return PhiForCausalLM(
        small_config(vocab_size=40, hidden_size=16, layers=2, heads=2, context=32)
    )


def test_the_rate_rises_in_a_line_stays_and_falls_to_zero():
    factors = [schedule(step, step / 100, RATES) for step in range(101)]
    rise = [after - before for before, after in pairwise(factors[:11])]
    fall = [before - after for before, after in pairwise(factors[60:])]
    assert factors[0] > 0.0
    assert rise == pytest.approx([1 / 11] * 10)
    assert factors[10:61] == [1.0] * 51
    assert fall == pytest.approx([1 / 40] * 40)
    assert factors[100] == 0.0


def test_a_longer_run_begins_as_a_shorter_one():
    short = [schedule(step, step / 100, RATES) for step in range(60)]
    long = [schedule(step, step / 1000, RATES) for step in range(60)]
    assert short == long


def test_without_decay_the_rate_stays():
    assert schedule(99, 0.99, Rates(warmup_steps=0, decay_share=0.0)) == 1.0


def test_every_parameter_is_in_one_group(model):
    groups = split_parameters(model)
    sizes = sum(parameter.numel() for group in groups.values() for parameter in group)
    assert sizes == model.config.num_parameters
    assert len(groups["block_matrices"]) == 4 * 2
    assert {p.shape for p in groups["other_matrices"]} == {(40, 16)}


@pytest.mark.parametrize("method", ["muon", "adamw"])
def test_each_parameter_is_stepped_once_at_its_rate(model, method):
    optimizers = make_optimizers(model, Rates(method=method, matrix_lr=0.1, other_lr=0.2))
    set_rates(optimizers, 0.5)
    rates = {
        id(parameter): (group["lr"], group["weight_decay"])
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        is_block_matrix = ".layers." in name and parameter.ndim == 2
        decay = Rates().weight_decay if parameter.ndim == 2 else 0.0
        assert rates[id(parameter)] == (0.05 if is_block_matrix else 0.1, decay)


def test_muon_makes_updates_orthogonal(model):
    optimizers = make_optimizers(model, Rates(matrix_lr=0.02, weight_decay=0.0))
    matrix = model.model.layers[0].mlp.fc1.weight
    before = matrix.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    spread = torch.linalg.svdvals((matrix - before) / 0.02 / 4**0.5)  # 64 rows, 16 columns
    assert spread.min() > 0.6
    assert spread.max() < 1.3


def test_rates_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"decay_share must be from 0 to 1, got 1\.5"):
        Rates(decay_share=1.5)
