import pytest
import torch
import torch.nn.functional as F

from phiscope.training import loss as loss_module
from phiscope.training.loss import head_loss


def make_problem(dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 6, generator=draw, dtype=dtype, requires_grad=True)
    weight = torch.randn(11, 6, generator=draw, dtype=dtype, requires_grad=True)
    bias = torch.randn(11, generator=draw, dtype=dtype, requires_grad=True)
    return hidden, weight, bias, torch.randint(11, (50,), generator=draw)


@pytest.mark.parametrize("rows", [7, 50, 1024])
def test_sliced_loss_equals_cross_entropy_with_its_gradients(rows, monkeypatch):
    monkeypatch.setattr(loss_module, "ROWS", rows)
    *given, targets = make_problem()
    plain = F.cross_entropy(F.linear(*given), targets, reduction="sum") * 0.3
    ours = head_loss(*given, targets) * 0.3
    torch.testing.assert_close(ours, plain)
    wanted, found = torch.autograd.grad(plain, given), torch.autograd.grad(ours, given)
    torch.testing.assert_close(found, wanted)


def test_torchs_own_fused_loss_agrees():
    fused = getattr(F, "linear_cross_entropy", None)
    if fused is None:
        pytest.skip("this torch has no linear_cross_entropy")
    hidden, weight, bias, targets = make_problem()
    theirs = fused(hidden, weight, targets, linear_bias=bias, reduction="sum")
    torch.testing.assert_close(head_loss(hidden, weight, bias, targets), theirs)


def test_no_gradients_are_made_where_none_are_wanted():
    hidden, weight, bias, targets = make_problem()
    with torch.no_grad():
        ours = head_loss(hidden, weight, bias, targets)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, head_loss(hidden, weight, bias, targets).detach())


def test_products_in_bf16_stay_near_fp32():
    *given, targets = make_problem(torch.float32)
    exact, rounded = (
        head_loss(*given, targets, products=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    torch.testing.assert_close(rounded, exact, rtol=0.01, atol=0.0)
    for one, other in zip(
        torch.autograd.grad(rounded, given), torch.autograd.grad(exact, given), strict=True
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.1)
