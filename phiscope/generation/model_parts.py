"""ModelParts: the objects a forward goes through, to tell whether a recorded one still is it.

A recorded forward reads the weights where they were. Writing into them is seen, and no matter;
another weight, module, function, setting or hook in a place where there was one is not, so that is
looked for before the result of a replay is used.
"""

from itertools import chain
from typing import Any

from torch import Tensor, nn

from phiscope.generation.model_state import is_known


class ModelParts:
    """What a model consists of, kept alive, so that a recorded forward reads no freed memory."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self.is_known = all(map(is_known, modules))
        """Whether every module does what its class says: hooks of others would not be replayed."""
        self._holders = [holder for module in modules for holder in _holders(module)]
        self._parts = self._list_parts()
        self._ids = list(map(id, self._parts))
        self._weights = [part for part in self._parts if isinstance(part, Tensor)]
        self._addresses = self._list_addresses()

    def is_current(self) -> bool:
        """Whether the model still consists of the same parts at the same addresses."""
        ids = list(map(id, self._list_parts()))
        return ids == self._ids and self._list_addresses() == self._addresses

    def _list_parts(self) -> list[Any]:
        return list(chain.from_iterable(holder.values() for holder in self._holders))

    def _list_addresses(self) -> list[int]:
        return [weight.data_ptr() for weight in self._weights]


def _holders(module: nn.Module) -> list[dict[str, Any]]:
    """A module's attributes and the dicts among them: its children, weights and hooks."""
    attributes = vars(module)
    return [attributes, *(x for x in attributes.values() if isinstance(x, dict))]
