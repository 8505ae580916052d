"""Small files of tensors that belong to one model: a projector, a LoRA adapter.

Such a file is a .safetensors file with a format and a version in its metadata, and under `model/` a
fingerprint of the model, which is a few values of each matrix. They are compared as values, for the
same model in bf16, or of another layout, has other bytes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from phiscope.checkpoint.safetensors_format import read_header, read_metadata
from phiscope.checkpoint.stored import StoredTensor, WeightFile
from phiscope.errors import CheckpointError
from phiscope.store.tensor_file import TensorEntry, write_tensor_file
from phiscope.wide import WideEmbedding

SAMPLES = 16
"""Values that are kept of each matrix of the model."""
_SAMPLED = re.compile(
    r"(embed_tokens|layers\.\d+\.(self_attn\.dense|mlp\.fc1|mlp\.fc2)|lm_head)\.weight$"
)
"""The matrices that our model and transformers' have alike, whatever stands before their names."""
_MODEL = "model/"
_ROUNDING = 2**-8
"""What bf16 may change of a value, twice over."""
_DTYPES = {torch.float32: "F32", torch.float64: "F64"}


@dataclass(frozen=True)
class ModelFile:
    """What such a file holds."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    samples: Mapping[str, Tensor]
    """A few values of each matrix of its model."""

    @property
    def whose(self) -> str:
        """Which model it says it is for."""
        return f"{self.path} is for {self.metadata.get('model', 'a model without a name')}"

    def check_model(self, model: nn.Module, *, common: bool = False) -> None:
        """Raise `CheckpointError` unless its model is this one, but for rounding.

        With `common` only matrices that both have count: integers are not compared.
        """
        for name, values in sample_weights(model).items():
            if name not in self.samples and common:
                continue
            if name not in self.samples:
                raise CheckpointError(f"{self.whose}, which has no {name}, as this model has")
            if not _are_near(values, self.samples[name]):
                raise CheckpointError(
                    f"{self.whose}, and this is another model: its {name} differs"
                )


def write_model_file(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    samples: Mapping[str, Tensor],
) -> None:
    """Write tensors, as float32 at least, with samples of their model: whole or not at all.

    Raises `StoreError` for a file that cannot be written.
    """
    named = {_MODEL + name: values for name, values in samples.items()}
    entries = {name: _make_entry(tensor) for name, tensor in (dict(tensors) | named).items()}
    write_tensor_file(path, entries, dict(metadata))


def read_model_file(path: Path, *, format: str, version: int) -> ModelFile:
    """Read a file of this format; `CheckpointError` if it is damaged, or another."""
    what = format.removeprefix("phiscope-")
    with WeightFile(path) as file:
        metadata = read_metadata(file)
        tensors = {name: _read(stored) for name, stored in read_header(file).items()}
    if metadata.get("format") != format or metadata.get("version") != str(version):
        raise CheckpointError(f"{path} holds no {what} of version {version}")
    own = {name: tensors[name] for name in tensors if not name.startswith(_MODEL)}
    if not all(bool(tensor.isfinite().all()) for tensor in own.values()):
        raise CheckpointError(f"{path} holds a {what} whose weights are not all finite")
    samples = {name[len(_MODEL) :]: tensors[name] for name in tensors if name not in own}
    return ModelFile(path, metadata, own, samples)


def find_embedding(model: nn.Module) -> nn.Module:
    """The embedding of any Phi, or the one given; `TypeError` for a model that is no Phi."""
    if isinstance(model, nn.Embedding | WideEmbedding):
        return model
    names = [name for name, _ in model.named_modules() if name.split(".")[-1] == "embed_tokens"]
    if len(names) != 1:
        raise TypeError(
            f"a {type(model).__name__} is no Phi, which has one embed_tokens; it has {len(names)}"
        )
    return model.get_submodule(names[0])


def sample_weights(model: nn.Module) -> dict[str, Tensor]:
    """A few values of each matrix, evenly spread, by the matrix's name."""
    samples = {}
    for name, parameter in model.named_parameters():
        found = _SAMPLED.search(name)
        if found is not None:
            flat = parameter.detach().reshape(-1)
            samples[found[0]] = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].cpu()
    return samples


def _are_near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), _ROUNDING, 1e-7)


def _make_entry(tensor: Tensor) -> TensorEntry:
    values = tensor.detach().cpu()
    values = values if values.dtype in _DTYPES else values.float()
    return TensorEntry(_DTYPES[values.dtype], tuple(values.shape), [values.numpy()])


def _read(stored: StoredTensor) -> Tensor:
    if stored.dtype not in _DTYPES:
        raise CheckpointError(f"{stored.file.path}: {stored.name!r} is {stored.dtype}, no float32")
    return stored.read()
