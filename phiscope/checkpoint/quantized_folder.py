"""A folder of integer weights, open and checked; its one file is mapped into memory.

The file is named so that no other library takes it for weights of floats. Tensors lie in it as the
layers of quantized.py hold them, bytes before fp32 before bf16, so that all panels lie on the
borders of cache lines. A mapped file must not be cut while it is in use: that kills the process.
It is replaced by writing another folder.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from phiscope.checkpoint.folder import OpenFolder, dtype_name
from phiscope.checkpoint.layouts import check_shapes
from phiscope.checkpoint.stored import StoredTensor
from phiscope.checkpoint.weights import Weights
from phiscope.config import PhiConfig, read_config
from phiscope.errors import CheckpointError
from phiscope.finite import all_finite
from phiscope.model import PhiForCausalLM
from phiscope.quantized import make_room
from phiscope.rounding import MULTIPLIERS
from phiscope.skeleton import make_skeleton

FILE_NAME = "quantized.safetensors"
ALIGNMENT = 64
EMBEDDING = "model.embed_tokens.weight"
_ORDER = (torch.uint8, torch.float32, torch.bfloat16)

Entries = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class QuantizedCheckpoint(OpenFolder):
    """An open folder of integer weights whose header was checked; a context manager.

    `tensors` has what is stored by the names in our model's state.
    """

    layout = None

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.config = read_config(self.folder)
        if self.config.quantization is None:
            raise CheckpointError(f"the config of {folder} does not say that weights are integers")
        self.weights = Weights(self.folder, (FILE_NAME,))
        self.tensors = self.weights.tensors
        try:
            self._check_header()
        except BaseException:
            self.weights.close()
            raise

    def map(self, names: Collection[str]) -> dict[str, Tensor]:
        """These tensors, mapped. Raises `CheckpointError` naming what `find_faults` finds."""
        (file,) = self.weights.files
        mapping = file.map()
        tensors = {name: self.tensors[name].view(mapping) for name in names}
        faults = [
            f"{name!r} holds NaN or infinity"
            for name, tensor in tensors.items()
            if tensor.dtype == torch.float32 and not all_finite(tensor)
        ]
        faults += [*_find_outliers(tensors)]
        if faults:
            rest = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise CheckpointError(f"{self.folder} is damaged: {'; '.join(faults[:5])}{rest}")
        return tensors

    def find_faults(self) -> list[str]:
        """What scales and multipliers hold that they cannot."""
        read = {name: x.read() for name, x in self.tensors.items() if _range_of(name) is not None}
        return [*_find_outliers(read)]

    def _check_header(self) -> None:
        assert self.config.quantization is not None
        expected = list_entries(make_integer_skeleton(self.config, self.config.quantization))
        found = {name: tensor.shape for name, tensor in self.tensors.items()}
        shapes = {name: shape for name, (_, shape) in expected.items()}
        check_shapes(found, shapes, where=str(self.folder))
        for name, (dtype, _) in expected.items():
            _check_place(self.tensors[name], dtype)


def make_integer_skeleton(
    config: PhiConfig, format: str, layers: int | None = None, *, wide: bool = False
) -> PhiForCausalLM:
    """The modules of a model with integer weights, without memory."""
    model = make_skeleton(config, layers)
    with torch.device("meta"):
        make_room(model, format, wide=wide)
    return model.requires_grad_(False).eval()


def list_entries(model: PhiForCausalLM) -> Entries:
    """Dtype and shape of all that is stored of a model with integer weights, in the file's order.

    Embeddings are bf16; norms and biases, which are few, keep fp32.
    """
    state = model.state_dict()
    entries = {name: (_choose_dtype(name, x), tuple(x.shape)) for name, x in state.items()}
    return dict(sorted(entries.items(), key=lambda item: _ORDER.index(item[1][0])))


def _find_outliers(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """The tensors with a number out of their range, and the number."""
    for name, tensor in tensors.items():
        if (limits := _range_of(name)) is not None:
            numbers = tensor.numpy()  # tens of times sooner than torch's own of bytes
            least, most = float(numbers.min()), float(numbers.max())
            if not (limits[0] <= least and most <= limits[1]):
                worst = least if least < limits[0] else most
                yield f"{name!r} holds {worst:g}, and must be from {limits[0]} to {limits[1]}"


def _range_of(name: str) -> tuple[float, float] | None:
    return _RANGES.get(name.rpartition(".")[2])


_RANGES: dict[str, tuple[float, float]] = {  # by the last word of a name
    "multipliers": (MULTIPLIERS[0], MULTIPLIERS[-1]),
    "scales": (0, torch.finfo(torch.float32).max),
}


def _choose_dtype(name: str, tensor: Tensor) -> torch.dtype:
    if name == EMBEDDING:
        return torch.bfloat16
    return tensor.dtype if tensor.dtype == torch.uint8 else torch.float32


def _check_place(tensor: StoredTensor, dtype: torch.dtype) -> None:
    """Raise `CheckpointError` unless it is of this dtype and lies where kernels can read it."""
    where = f"{tensor.name!r} in {tensor.file.path}"
    if tensor.dtype != dtype:
        raise CheckpointError(f"{where} is {dtype_name(tensor.dtype)}, not {dtype_name(dtype)}")
    alignment = ALIGNMENT if dtype == torch.uint8 else dtype.itemsize
    if tensor.offset % alignment:
        raise CheckpointError(
            f"{where} lies at byte {tensor.offset:,}, which is no multiple of {alignment}; it was "
            "written by another program: quantize the float checkpoint again"
        )
