"""The report: how a filter and the baseline do on the rows that neither has seen.

Brier score and calibration error are of probabilities. The score of ridge regression is none; a
logistic curve through the training rows' scores makes one of it (Platt 1999).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiscope.filtering.heads import Array, sigmoid

NUM_BINS = 10
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """sigmoid(slope * score + offset)."""

    slope: float
    offset: float

    def probabilities(self, scores: Array) -> Array:
        return sigmoid(self.slope * scores + self.offset)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one classifier, on the held-out rows."""

    auroc: float
    average_precision: float
    precision: float
    """At the threshold; 0 where nothing is kept."""
    recall: float
    f1: float
    brier: float
    calibration_error: float
    """Expected, over 10 bins of equal width."""
    kept: float
    """The share of rows at or above the threshold."""
    kept_in_training: float
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Rows, and groups, on the two sides of the split."""

    training: int
    training_positive: int
    training_groups: int
    held_out: int
    held_out_positive: int
    held_out_groups: int
    skipped: int
    """Labelled rows that the store lists as bad."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A filter and the baseline, side by side."""

    head: Figures
    baseline: Figures
    counts: Counts
    split_by: str
    """`id`, or the column of the groups."""
    regularization: float | None
    """Of a linear head, given or chosen."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_report(value: Any) -> Report:
    """What `to_json` wrote; `KeyError` or `TypeError` if it is not that."""
    parts = {
        "head": Figures(**value["head"]),
        "baseline": Figures(**value["baseline"]),
        "counts": Counts(**value["counts"]),
    }
    return Report(**{**value, **parts})


def fit_curve(scores: Array, positive: Mask) -> Curve:
    """The logistic curve of scores that are no probabilities."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit(scores[:, None], positive)
    return Curve(slope=float(model.coef_[0, 0]), offset=float(model.intercept_[0]))


def choose_threshold(scores: Array, share: float) -> float:
    """The score at or above which this share of the rows lies, one of them at least."""
    num_kept = max(1, round(share * len(scores)))
    return float(np.sort(scores)[len(scores) - num_kept])


def measure(
    scores: Array,
    probabilities: Array,
    positive: Mask,
    held_out: Mask,
    threshold: float,
) -> Figures:
    """The figures of scores (n,) of all rows, of which the held-out ones count."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth, seen = positive[held_out], scores[held_out]
    kept = seen >= threshold
    hits = int(np.count_nonzero(kept & truth))
    precision, recall = hits / max(1, kept.sum()), hits / max(1, truth.sum())
    likely = probabilities[held_out]
    return Figures(
        auroc=float(roc_auc_score(truth, seen)),
        average_precision=float(average_precision_score(truth, seen)),
        precision=float(precision),
        recall=float(recall),
        f1=float(2 * precision * recall / (precision + recall)) if hits else 0.0,
        brier=float(np.square(likely - truth).mean()),
        calibration_error=_calibration_error(likely, truth),
        kept=float(kept.mean()),
        kept_in_training=float((scores[~held_out] >= threshold).mean()),
        threshold=threshold,
    )


def _calibration_error(probabilities: Array, truth: Mask) -> float:
    """The mean of |mean probability - share of positives| over bins, each weighed by its rows."""
    bins = np.minimum((probabilities * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    excess = np.bincount(bins, probabilities - truth, NUM_BINS)
    return float(np.abs(excess).sum() / len(truth))
