"""Windows of several corpora by weight, in a fixed pattern and without a draw to remember.

The first source takes of n draws floor(n w + u), which spreads its share as evenly as can be; the
draws it leaves are numbered anew and shared out in the same way among the rest. So the number of
draws that a source has had is known without counting them, and is never further from its share than
there are sources.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import isfinite

from phiscope.training.batches import Batch
from phiscope.training.corpora.permutation import draw_integer
from phiscope.training.corpora.windows import Windows, gather

_BITS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """Corpora with weights, which need not add up to 1.

    The sources must have windows of one length and tokens of one tokenizer; `ValueError` if not.
    Each goes through its own epochs, whatever the others do.
    """

    sources: Sequence[Windows]
    weights: Sequence[float]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sources or len(self.sources) != len(self.weights):
            raise ValueError(f"{len(self.sources)} sources cannot have {len(self.weights)} weights")
        if not all(isfinite(weight) and weight > 0 for weight in self.weights):
            raise ValueError(f"weights must be above 0 and finite, got {list(self.weights)}")
        if len({source.length for source in self.sources}) > 1:
            lengths = [source.length for source in self.sources]
            raise ValueError(f"the windows of a mixture must be equally long, got {lengths}")
        if len({_name_tokenizer(source) for source in self.sources}) > 1:
            folders = [str(source.shards.folder) for source in self.sources]
            raise ValueError(f"{', '.join(folders)} have tokens of different tokenizers")

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return self.sources[0].length

    @property
    def digest(self) -> str:
        """A hash of all that decides which window comes as which: what a resumed run compares."""
        fields = ([source.digest for source in self.sources], list(self.weights), self.seed)
        return hashlib.sha256(repr(fields).encode()).hexdigest()

    def batch(self, step: int, size: int, rank: int = 0, num_ranks: int = 1) -> Batch:
        """The windows of a step, or a rank's share of them: the same for any number of ranks.

        Raises `ValueError` if `num_ranks` does not divide `size`.
        """
        return gather(self, step, size, rank, num_ranks)

    def window(self, number: int) -> Batch:
        """The window drawn as number `number` since training began."""
        source, inner = self.draw(number)
        return self.sources[source].window(inner)

    def draw(self, number: int) -> tuple[int, int]:
        """Which source draw `number` is of, and how many draws that source had before."""
        for source, (share, phase) in enumerate(self._shares):
            before = (number * share + phase) >> _BITS
            if ((number + 1) * share + phase) >> _BITS > before:
                return source, before
            number -= before
        return len(self.sources) - 1, number

    @cached_property
    def _shares(self) -> list[tuple[int, int]]:
        """Of each source but the last: its share of what those before leave, and its phase."""
        weights = [Fraction(weight) for weight in self.weights]
        shares = (weight / sum(weights[at:]) for at, weight in enumerate(weights[:-1]))
        return [
            (int(share * 2**_BITS), draw_integer(2**_BITS, "phase", self.seed, at))
            for at, share in enumerate(shares)
        ]


def _name_tokenizer(windows: Windows) -> str:
    return str(windows.shards.manifest.header["tokenizer"]["sha256"])
