"""ModelState: what a model is at a moment, to tell whether keys and values still belong to it.

Every write that torch knows of counts a tensor's version up, and a few numbers of each tensor are
looked at as well, for a write through `.data` is not counted. Where nobody can tell, there is no
state: hooks and classes of others may do anything, and weights that require gradients are being
trained.
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SAMPLES = 16
"""Numbers looked at in each tensor."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True, eq=False)
class ModelState:
    """Compare with `equals`; nothing of the model is kept alive."""

    parts: tuple["weakref.ref[object]", ...]
    """Modules and tensors: a part that was replaced is another object."""
    places: tuple[tuple[int, int, torch.dtype], ...]
    """Address, version and dtype of each weight."""
    samples: bytes

    def equals(self, other: "ModelState | None") -> bool:
        """Whether the model is the same as far as can be told."""
        return (
            other is not None
            and len(self.parts) == len(other.parts)
            and all(a is b for a, b in zip(self.parts, other.parts, strict=True))
            and (self.places, self.samples) == (other.places, other.samples)
        )


def read_state(model: nn.Module) -> ModelState | None:
    """The state of a model; None if it cannot be told."""
    modules = list(model.modules())
    weights = [weight for module in modules for weight in _weights(module)]
    if not (all(map(is_known, modules)) and all(map(_is_frozen, weights))):
        return None
    attributes = [x for module in modules for x in vars(module).values() if isinstance(x, Tensor)]
    parts: list[object] = [*modules, *weights, *attributes]
    return ModelState(
        parts=tuple(map(weakref.ref, parts)),
        places=tuple((w.data_ptr(), w._version, w.dtype) for w in weights),
        samples=_read_samples(weights),
    )


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """A module's own parameters and buffers."""
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def is_known(module: nn.Module) -> bool:
    """Whether a module does what its class says, and its class is ours or torch's."""
    is_own = type(module).__module__.partition(".")[0] in ("phiscope", "torch")
    is_hooked = any(getattr(module, name) for name in _HOOKS) or "forward" in vars(module)
    return is_own and not is_hooked


def _is_frozen(weight: Tensor) -> bool:
    return not weight.requires_grad and not weight.is_inference() and not weight.is_mkldnn


def _read_samples(weights: Sequence[Tensor]) -> bytes:
    """Numbers of every weight, fetched from each device at once."""
    found: dict[torch.device, list[Tensor]] = {}
    for weight in weights:
        found.setdefault(weight.device, []).append(_sample(weight))
    return b"".join(torch.cat(samples).cpu().numpy().tobytes() for samples in found.values())


def _sample(weight: Tensor) -> Tensor:
    """Numbers spread over a tensor, as bytes."""
    flat = weight.detach().flatten()
    step = max(1, len(flat) // _SAMPLES) | 1  # odd: not always of one column
    return flat[::step].contiguous().view(torch.uint8)
