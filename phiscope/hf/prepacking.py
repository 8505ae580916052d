"""Prepacked weights for our transformers classes: on a CPU, tokens at the speed of its memory."""

from typing import Any

from torch import nn

from phiscope.errors import UnsupportedError
from phiscope.prepacked import prepack, unpack
from phiscope.runtime import find_prepacking_obstacle


class Prepacking:
    """Mixed into our models."""

    def prepack(self: Any) -> Any:
        """Lay linear weights out as the CPU's kernels read them, for inference, and give the model.

        Results stay the same, and so does memory: each weight is given up for its packed form.
        `unpack()` before training, converting or moving. Raises `UnsupportedError` where it cannot
        be done, and for a model that is in training mode.
        """
        weight = next(x.weight for x in self.modules() if isinstance(x, nn.Embedding))
        obstacle = find_prepacking_obstacle(weight.device, weight.dtype)
        if self.training:
            obstacle = "prepacked weights are for inference: call model.eval() first"
        if obstacle is not None:
            raise UnsupportedError(obstacle)
        prepack(self)
        return self

    def unpack(self: Any) -> Any:
        """Make prepacked weights plain again, without gradients until they are asked for."""
        unpack(self)
        return self
