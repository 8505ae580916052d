"""The split: rows are held out by the hash of their group, so that no group is on both sides.

Generated texts of one template differ in a few words. A filter that saw some of them would know
the others, and a report on those would praise it for its memory.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def hold_out(groups: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Whether each row is held out; a group keeps its side whatever other groups there are."""
    return _hash_all(groups, f"held out {seed}") < share


def fold(groups: Sequence[str], num_folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row, 0 to `num_folds - 1`, for cross-validation by groups."""
    return (_hash_all(groups, f"fold {seed}") * num_folds).astype(np.int64)


def _hash_all(groups: Sequence[str], salt: str) -> NDArray[np.float64]:
    """A number in [0, 1) for each row, the same for rows of one group."""
    numbers = {group: _hash(group, salt) for group in set(groups)}
    return np.array([numbers[group] for group in groups], dtype=np.float64)


def _hash(group: str, salt: str) -> float:
    digest = hashlib.sha256(f"{salt}\n{group}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
