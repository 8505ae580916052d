"""Training of a head: scikit-learn's ridge, logistic regression, forest or MLP, on numbers of
mean 0 and variance 1.

How strongly a linear head is regularised is chosen, unless it is given, by cross-validation whose
folds are whole groups. It decides much: states have thousands of dimensions, labels are few, and
with about as many rows as dimensions a head that is hardly regularised is at its worst.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from phiscope.errors import MissingExtraError
from phiscope.filtering.heads import Array, ForestHead, Head, Kind, LinearHead, MlpHead
from phiscope.filtering.split import fold

Mask = NDArray[np.bool_]
STRENGTHS = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
"""What is tried: alpha of ridge, 1 / C of logistic regression."""
_NUM_FOLDS = 3
_NUM_TREES = 200
_MLP_WIDTH = 64
_MLP_EPOCHS = 60


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Rows to learn from."""

    x: Array
    """Standardised features (n, width)."""
    targets: Array
    """(n,): 0 and 1, or grades."""
    positive: Mask
    groups: Sequence[str]

    def take(self, chosen: Mask) -> "Examples":
        return Examples(
            x=self.x[chosen],
            targets=self.targets[chosen],
            positive=self.positive[chosen],
            groups=[
                group for group, is_chosen in zip(self.groups, chosen, strict=True) if is_chosen
            ],
        )


Fit = Callable[[Examples, float, int], Head]
"""Takes examples, how strongly to regularise, and a seed."""


def train_head(
    kind: Kind, examples: Examples, strength: float | None, seed: int
) -> tuple[Head, float | None]:
    """A head, and how strongly it was regularised if it can be."""
    require_sklearn()
    fit = FITS[kind]
    if kind not in _REGULARISED:
        return fit(examples, 1.0, seed), None
    if strength is None:
        strength = _choose_strength(fit, examples, seed)
    return fit(examples, strength, seed), strength


def require_sklearn() -> None:
    """Raise `MissingExtraError` where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("filter") from error


def _choose_strength(fit: Fit, examples: Examples, seed: int) -> float:
    """The strength with the least squared error on folds that the head did not see."""
    folds = fold(examples.groups, _NUM_FOLDS, seed)
    seen = [folds != number for number in np.unique(folds)]
    if len(seen) == 1 or any(len(set(examples.positive[chosen])) == 1 for chosen in seen):
        return STRENGTHS[len(STRENGTHS) // 2]
    errors = [_sum_errors(fit, examples, seen, strength, seed) for strength in STRENGTHS]
    return STRENGTHS[int(np.argmin(errors))]


def _sum_errors(
    fit: Fit, examples: Examples, seen: Sequence[Mask], strength: float, seed: int
) -> float:
    error = 0.0
    for chosen in seen:
        head, unseen = fit(examples.take(chosen), strength, seed), examples.take(~chosen)
        error += float(np.square(head.score(unseen.x) - _targets(head, unseen)).sum())
    return error


def _targets(head: Head, examples: Examples) -> Array:
    """What the head's scores should be."""
    return examples.targets if head.kind == "ridge" else examples.positive.astype(np.float64)


def _fit_ridge(examples: Examples, strength: float, seed: int) -> LinearHead:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=strength).fit(examples.x, examples.targets)
    return LinearHead(kind="ridge", weights=model.coef_, bias=float(model.intercept_))


def _fit_logistic(examples: Examples, strength: float, seed: int) -> LinearHead:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / strength, max_iter=1000).fit(examples.x, examples.positive)
    return LinearHead(kind="logistic", weights=model.coef_[0], bias=float(model.intercept_[0]))


def _fit_forest(examples: Examples, strength: float, seed: int) -> ForestHead:
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(_NUM_TREES, min_samples_leaf=2, random_state=seed)
    forest.set_params(n_jobs=torch.get_num_threads()).fit(examples.x, examples.positive)
    return ForestHead(forest=forest.set_params(n_jobs=None))  # threads add votes in any order


def _fit_mlp(examples: Examples, strength: float, seed: int) -> MlpHead:
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier((_MLP_WIDTH,), max_iter=_MLP_EPOCHS, alpha=strength, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it could go on: it is stopped early on purpose
        model.fit(examples.x, examples.positive)
    return MlpHead(weights=tuple(model.coefs_), biases=tuple(model.intercepts_))


FITS: dict[Kind, Fit] = {
    "ridge": _fit_ridge,
    "logistic": _fit_logistic,
    "forest": _fit_forest,
    "mlp": _fit_mlp,
}
_REGULARISED = ("ridge", "logistic")
