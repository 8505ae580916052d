"""The baseline: logistic regression on hashed words and pairs of words, which reads no states.

A filter on hidden states that does not beat it on the same held-out rows has learned words.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = "bigrams"


def score_bigrams(
    texts: Sequence[str], positive: NDArray[np.bool_], held_out: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The probability (n,) that each text is positive, learned from the rows not held out."""
    from sklearn.linear_model import LogisticRegression

    counts = _hash_words(texts)
    counts = counts[:, np.unique(counts[~held_out].indices)]  # the others would weigh nothing
    model = LogisticRegression(max_iter=1000).fit(counts[~held_out], positive[~held_out])
    scores: NDArray[np.float64] = model.predict_proba(counts)[:, 1]
    return scores


def _hash_words(texts: Sequence[str]) -> Any:
    """A sparse matrix, each row of length 1."""
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(ngram_range=(1, 2)).transform(texts)
