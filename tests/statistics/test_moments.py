import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phiscope.errors import NonFiniteError
from phiscope.statistics.moments import BLOCK_ROWS, Moments

NAMES = ("calm", "rude", None)


def make_rows(n, width=7, *, seed=0, offset=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return (torch.randn(n, width, generator=generator).double() @ mixing + offset).to(dtype)


def make_labels(n, seed=0, names=NAMES):
    generator = np.random.default_rng(seed)
    return [names[i] for i in generator.integers(0, len(names), n)]


def measure(rows, labels=None, **options):
    moments = Moments(rows.shape[1], **options)
    moments.update(rows, labels)
    return moments


def assert_close(ours, numpys, scale=1.0, tolerance=1e-10):
    assert np.abs(ours.numpy() - numpys).max() <= tolerance * np.max(scale)


def assert_is_direct(moments, rows, labels, tolerance=1e-10):
    """Against numpy's formulas on all rows at once."""
    x = rows.double().numpy()
    deviations = x.std(axis=0)
    assert moments.count == len(x)
    assert_close(moments.mean, x.mean(axis=0), np.abs(x).max())
    assert_close(moments.variance, x.var(axis=0, ddof=1), deviations**2)
    if not moments.diagonal:
        error = np.abs(moments.covariance.numpy() - np.cov(x.T))
        assert (error / np.outer(deviations, deviations)).max() <= tolerance
    for name, mean in moments.class_means.items():
        chosen = x[[label == name for label in labels]]
        assert moments.class_counts[name] == len(chosen)
        assert_close(mean, chosen.mean(axis=0), np.abs(x).max())
    assert set(moments.class_means) == {label for label in labels if label is not None}


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 2 * BLOCK_ROWS), min_size=1, max_size=6),
    offset=st.sampled_from([0.0, 1e4, -1e6]),
    diagonal=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_any_split_merged_in_any_order_is_the_direct_formula(sizes, offset, diagonal, order):
    sizes = [*sizes, 20]
    rows, labels = make_rows(sum(sizes), offset=offset), make_labels(sum(sizes))
    parts, begin = [], 0
    for size in sizes:
        end = begin + size
        parts.append(measure(rows[begin:end], labels[begin:end], diagonal=diagonal))
        begin = end
    while len(parts) > 1:
        order.shuffle(parts)
        parts[-2].merge(parts.pop())
    assert_is_direct(parts[0], rows, labels, tolerance=1e-10 * max(1, abs(offset) / 1e4))


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 3 * BLOCK_ROWS), max_size=6), diagonal=st.booleans())
def test_the_pieces_in_which_rows_come_do_not_change_a_bit(cuts, diagonal):
    rows = make_rows(3 * BLOCK_ROWS, dtype=torch.float32)
    labels = make_labels(len(rows))
    moments = Moments(7, diagonal=diagonal)
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(rows)], strict=True):
        moments.update(rows[begin:end], labels[begin:end])
    whole = measure(rows, labels, diagonal=diagonal).state()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in moments.state().items())


def test_a_large_mean_does_not_cancel():
    rows = make_rows(20_000, offset=1e4, dtype=torch.float32)
    assert_is_direct(measure(rows), rows, [None], tolerance=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_rows_have_exact_variances_and_covariances_to_the_stated_error(dtype):
    rows, labels = make_rows(3000, dtype=dtype), make_labels(3000)
    assert_is_direct(measure(rows, labels), rows, labels, tolerance=1e-7)


def test_the_diagonal_alone_equals_that_of_the_covariance():
    rows, labels = make_rows(2000, dtype=torch.float32), make_labels(2000, names=("a", "b"))
    full, diagonal = measure(rows, labels), measure(rows, labels, diagonal=True)
    assert torch.equal(full.variance, diagonal.variance)
    assert torch.equal(full.variance, full.covariance.diagonal())
    assert torch.allclose(full.within_class_variance, diagonal.within_class_variance, rtol=1e-12)


def test_the_covariance_within_classes_is_that_of_rows_less_their_class_mean():
    rows, labels = make_rows(500, offset=3.0), make_labels(500, names=("a", "b", "c"))
    chosen = [[label == name for label in labels] for name in "abc"]
    for each, shift in zip(chosen, (-5.0, 0.0, 20.0), strict=True):
        rows[torch.tensor(each)] += shift
    x = rows.numpy()
    within = sum(np.cov(x[each].T, ddof=0) * sum(each) for each in chosen) / (500 - 3)
    assert_close(measure(rows, labels).within_class_covariance, within, np.abs(np.cov(x.T)).max())


def test_numpy_rows_count_as_tensors_do():
    rows = make_rows(40, dtype=torch.float32)
    array = rows.numpy().copy()
    array.flags.writeable = False
    assert torch.equal(measure(array).covariance, measure(rows).covariance)


def test_rows_may_be_changed_after_they_were_given():
    rows = make_rows(10)
    moments = measure(rows)
    before = rows.mean(dim=0)
    rows.zero_()
    assert torch.allclose(moments.mean, before)


def test_a_state_goes_on_where_it_was_taken():
    rows, labels = make_rows(900, dtype=torch.float32), make_labels(900)
    moments = measure(rows[:500], labels[:500])
    state = {key: tensor.clone() for key, tensor in moments.state().items()}
    resumed = Moments.from_state(state, list(moments.class_counts))
    for each in (moments, resumed):
        each.update(rows[500:], labels[500:])
    assert torch.equal(moments.covariance, resumed.covariance)
    assert moments.class_counts == resumed.class_counts
    for name, mean in moments.class_means.items():
        assert torch.equal(mean, resumed.class_means[name])


def test_a_row_with_a_nan_is_named_and_nothing_is_added():
    rows = make_rows(5)
    moments = measure(rows)
    bad = rows.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(NonFiniteError, match="row 3 has a NaN or an infinity"):
        moments.update(bad)
    assert moments.count == 5


def test_finite_rows_whose_sum_overflows_are_counted():
    moments = measure(torch.full((4, 2), 3e38))
    assert moments.mean.tolist() == pytest.approx([3e38, 3e38])


@pytest.mark.parametrize(
    "rows", [torch.ones(3, 6), torch.ones(7), torch.ones(3, 7, dtype=torch.int32)]
)
def test_rows_of_another_kind_are_refused(rows):
    with pytest.raises(ValueError, match=r"rows must be floating, of shape \(n, 7\), got torch\."):
        Moments(7).update(rows)


def test_what_cannot_be_known_is_refused():
    rows = make_rows(4)
    with pytest.raises(ValueError, match="4 rows came with 1 labels"):
        Moments(7).update(rows, ["a"])
    with pytest.raises(ValueError, match="takes 1 rows at least, and there were 0"):
        _ = Moments(7).mean
    with pytest.raises(ValueError, match="takes 2 rows at least, and there were 1"):
        _ = measure(rows[:1]).covariance
    with pytest.raises(ValueError, match="hold variances only"):
        _ = measure(rows, diagonal=True).covariance
    with pytest.raises(ValueError, match="of 4 rows 1 have no label, and there are 1 classes"):
        _ = measure(rows, ["a", "a", "a", None]).within_class_covariance
    with pytest.raises(ValueError, match="cannot merge moments of 7 variances into those of a cov"):
        measure(rows).merge(measure(rows, diagonal=True))
