"""Fitting: a filter made of a store and a file of labels, and measured on held-out rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from phiscope.errors import FilterError
from phiscope.filtering.bigrams import score_bigrams
from phiscope.filtering.features import Vectors, choose_features
from phiscope.filtering.filter import Filter, Standards
from phiscope.filtering.heads import Array, Head, Kind
from phiscope.filtering.labels import (
    MAX_GRADE,
    Classes,
    Grades,
    LabelFields,
    Labelled,
    choose_meaning,
    read_labelled,
)
from phiscope.filtering.origin import read_origin
from phiscope.filtering.report import (
    Counts,
    Curve,
    Figures,
    Report,
    choose_threshold,
    fit_curve,
    measure,
)
from phiscope.filtering.split import hold_out
from phiscope.filtering.training import Examples, require_sklearn, train_head
from phiscope.store import Store, open_store

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """How a filter is fitted."""

    head: Kind = "ridge"
    columns: tuple[str, ...] | None = None
    """Columns of the store, or points; None: all that are pooled."""
    positive: str | None = None
    """The class to keep; None: the labels are grades."""
    positive_from: float = 3.0
    """The grade from which a text counts as positive."""
    keep_rate: float = 0.5
    """The share of the training rows that the threshold keeps."""
    threshold: float | None = None
    """The score itself, in place of the rate."""
    held_out: float = 0.2
    """The share of the groups that is held out, as their hashes fall."""
    regularization: float | None = None
    """Alpha of ridge, 1 / C of logistic regression; None: chosen by cross-validation."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.head not in get_args(Kind):
            raise ValueError(f"no head {self.head!r}; choose from {', '.join(get_args(Kind))}")
        for name in ("keep_rate", "held_out"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")
        if not 0 < self.positive_from <= MAX_GRADE:
            raise ValueError(f"positive_from is above 0 and at most 5, got {self.positive_from}")
        if self.regularization is not None and not 0 < self.regularization < float("inf"):
            raise ValueError(f"regularization must be above 0, got {self.regularization}")
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise ValueError(f"threshold must be a finite number, got {self.threshold}")


def fit_filter(
    store: Store | str | Path,
    data: Any,
    options: FilterOptions,
    *,
    fields: LabelFields | None = None,
    format: str | None = None,
) -> Filter:
    """Fit a head on the rows of a store that a file, or an iterable of mappings, has labels for.

    The report in it is of held-out rows. The labelled rows' features are in memory, a few times
    over and in fp64.
    Raises `InputError` for data that cannot be joined with the store, `FilterError` for labels or
    states that make no filter, and `MissingExtraError`.
    """
    require_sklearn()
    store = store if isinstance(store, Store) else open_store(store)
    fields = fields or LabelFields()
    features, origin = choose_features(store, options.columns), read_origin(store)
    labelled = read_labelled(store, data, fields, format=format)
    meaning = choose_meaning(labelled.labels, options.positive, options.positive_from)
    sides = _divide(labelled, meaning, options)
    trained = _train(features.read(store, labelled.rows), sides, options)
    figures = trained.measure(sides)
    report = Report(
        head=figures,
        baseline=_measure_baseline(labelled.texts, sides, figures),
        counts=sides.count(labelled.num_skipped),
        split_by=fields.group or "id",
        regularization=trained.strength,
    )
    return Filter(
        features=features,
        origin=origin,
        meaning=meaning,
        standards=trained.standards,
        head=trained.head,
        threshold=trained.threshold,
        curve=trained.curve,
        report=report,
    )


@dataclass(frozen=True, kw_only=True)
class _Sides:
    """What is known of each row but its features."""

    groups: Sequence[str]
    targets: Array
    positive: Mask
    held_out: Mask

    def check(self) -> None:
        """Raise `FilterError` unless both sides of the split have positive and other rows."""
        for name, chosen in (("training", ~self.held_out), ("held-out", self.held_out)):
            count, num_positive = int(chosen.sum()), int(self.positive[chosen].sum())
            if num_positive in (0, count):
                raise FilterError(
                    f"the {name} part has {count:,} rows, {num_positive:,} of them positive, and"
                    " needs both kinds; hold out another share, split with another seed, or label"
                    " more groups"
                )

    def count(self, num_skipped: int) -> Counts:
        seen, unseen = self.list_groups(held_out=False), self.list_groups(held_out=True)
        return Counts(
            training=int((~self.held_out).sum()),
            training_positive=int(self.positive[~self.held_out].sum()),
            training_groups=len(seen),
            held_out=int(self.held_out.sum()),
            held_out_positive=int(self.positive[self.held_out].sum()),
            held_out_groups=len(unseen),
            skipped=num_skipped,
        )

    def list_groups(self, *, held_out: bool) -> set[str]:
        return {
            group
            for group, is_out in zip(self.groups, self.held_out.tolist(), strict=True)
            if is_out == held_out
        }


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """A head, and the scores (n,) that it gives all rows."""

    standards: Standards
    head: Head
    strength: float | None
    curve: Curve | None
    threshold: float
    scores: Array

    def measure(self, sides: _Sides) -> Figures:
        scores = self.scores
        probabilities = scores if self.curve is None else self.curve.probabilities(scores)
        return measure(scores, probabilities, sides.positive, sides.held_out, self.threshold)


def _divide(labelled: Labelled, meaning: Classes | Grades, options: FilterOptions) -> _Sides:
    targets = meaning.targets(labelled.labels)
    sides = _Sides(
        groups=labelled.groups,
        targets=targets,
        positive=meaning.are_positive(targets),
        held_out=hold_out(labelled.groups, options.held_out, options.seed),
    )
    sides.check()
    return sides


def _train(vectors: Vectors, sides: _Sides, options: FilterOptions) -> _Trained:
    """Fit everything on the training part of the features (n, width)."""
    seen = ~sides.held_out
    standards = Standards.of(vectors[seen])
    x = standards.apply(vectors)
    examples = Examples(x=x, targets=sides.targets, positive=sides.positive, groups=sides.groups)
    head, strength = train_head(
        options.head, examples.take(seen), options.regularization, options.seed
    )
    scores, threshold = head.score(x), options.threshold
    if threshold is None:
        threshold = choose_threshold(scores[seen], options.keep_rate)
    curve = fit_curve(scores[seen], sides.positive[seen]) if head.kind == "ridge" else None
    return _Trained(
        standards=standards,
        head=head,
        strength=strength,
        curve=curve,
        threshold=threshold,
        scores=scores,
    )


def _measure_baseline(texts: Sequence[str], sides: _Sides, figures: Figures) -> Figures:
    """The baseline at the threshold that keeps as much of the training part as the head does."""
    scores = score_bigrams(texts, sides.positive, sides.held_out)
    threshold = choose_threshold(scores[~sides.held_out], figures.kept_in_training)
    return measure(scores, scores, sides.positive, sides.held_out, threshold)
