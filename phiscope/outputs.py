"""Plan: what a forward does at its points besides passing them on.

The model calls a plan at every point (docs/points.md); `phiscope.activations` implements plans
that keep, pool or change what lies there. It is an argument of one forward, never a hook.
"""

from typing import Protocol

from torch import Tensor


class Plan(Protocol):
    """Told of every point of one forward, in the order they are computed.

    It changes what flows through the model, never the model itself.
    """

    @property
    def depth(self) -> int | None:
        """Blocks to run before stopping; None: all of them, and the final norm."""

    def wants_maps(self, layer: int) -> bool:
        """Whether this layer's attention maps are to be computed one by one."""

    def wants(self, name: str, layer: int | None = None) -> bool:
        """Whether this point is read or changed. A point that is not may not be shown at all."""

    def changes(self, name: str, layer: int | None = None) -> bool:
        """Whether this point is changed. What lies at others may be shown after it was used."""

    def at(self, name: str, layer: int | None, x: Tensor, sequence: int | None = None) -> Tensor:
        """See the tensor at a point and return it, or what shall stand there instead.

        What is to be kept must be copied: the forward may overwrite the tensor afterwards.

        `sequence` is given for attention maps (heads, T, K), which come per sequence.
        """
