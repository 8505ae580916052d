"""The projector between a feature extractor and a language model, and its file.

The file is a .safetensors file: the two layers, the sizes in its metadata, and under `model/` a
fingerprint of the model, which is a few values of each matrix. They are compared as values, for the
same model in bf16, or of another layout, has other bytes.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phiscope.checkpoint.safetensors_format import read_header, read_metadata
from phiscope.checkpoint.stored import StoredTensor, WeightFile
from phiscope.errors import CheckpointError
from phiscope.store.tensor_file import TensorEntry, write_tensor_file
from phiscope.strict import parse_json_object
from phiscope.wide import WideEmbedding

FORMAT = "phiscope-projector"
VERSION = 1
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


class Projector(nn.Module):
    """Feature vectors to embeddings: two linear layers with a GELU between, as LLaVA 1.5 has.

    Each vector becomes `num_tokens` embeddings. With 1, an image of n patches is n tokens; with 8,
    one vector for a whole image is 8 tokens. `width` is that of the layer between (default:
    `hidden_size`). Raises `ValueError` for sizes that are no integers above 0.
    """

    def __init__(
        self, feature_dim: int, hidden_size: int, *, num_tokens: int = 1, width: int | None = None
    ) -> None:
        super().__init__()
        self.sizes = {
            "feature_dim": feature_dim,
            "hidden_size": hidden_size,
            "num_tokens": num_tokens,
            "width": hidden_size if width is None else width,
        }
        for name, size in self.sizes.items():
            if type(size) is not int or size < 1:
                raise ValueError(f"a projector's {name} is an integer above 0, got {size!r}")
        self.fc1 = nn.Linear(feature_dim, self.sizes["width"])
        self.fc2 = nn.Linear(self.sizes["width"], num_tokens * hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """Features (..., n, feature_dim) to embeddings (..., n * num_tokens, hidden).

        One vector is a row, (1, feature_dim). They are converted to the projector's dtype. Raises
        `ValueError` for another shape and for integers, such as the bytes of an image.
        """
        wanted = self.sizes["feature_dim"]
        if features.ndim < 2 or features.shape[-1] != wanted or not features.is_floating_point():
            raise ValueError(
                f"features are floating point of shape (..., n, {wanted}),"
                f" got {features.dtype} {tuple(features.shape)}"
            )
        projected: Tensor = self.fc2(F.gelu(self.fc1(features.to(self.fc1.weight.dtype))))
        *before, n, _ = features.shape
        return projected.view(*before, n * self.sizes["num_tokens"], self.sizes["hidden_size"])


def save_projector(
    path: Path | str, projector: Projector, model: nn.Module, *, model_name: str | None = None
) -> None:
    """Write a projector, and which model it is for: the file is there whole or not at all.

    `model` is the Phi it was trained with, ours or transformers'; errors will call it `model_name`.
    Half precision is stored as float32. Raises `ValueError` if the two do not fit each other and
    `StoreError` for a file that cannot be written.
    """
    width, wanted = projector.sizes["hidden_size"], _hidden_size(model)
    if width != wanted:
        raise ValueError(f"the projector has hidden size {width}, and the model has {wanted}")
    metadata = {"format": FORMAT, "version": str(VERSION), "sizes": json.dumps(projector.sizes)}
    if model_name is not None:
        metadata["model"] = model_name
    samples = {_MODEL + name: values for name, values in _sample_weights(model).items()}
    tensors = projector.state_dict() | samples
    entries = {name: _make_entry(tensor) for name, tensor in tensors.items()}
    write_tensor_file(Path(path), entries, metadata)


def load_projector(path: Path | str, model: nn.Module) -> Projector:
    """Read a projector for the model that it was trained with, which may be in another dtype now.

    It comes on the CPU, in the dtype of the file. Raises `CheckpointError` for a damaged file, and
    for another model, with what differs.
    """
    path = Path(path)
    with WeightFile(path) as file:
        metadata = read_metadata(file)
        tensors = {name: _read(stored) for name, stored in read_header(file).items()}
    own = {name: tensors[name] for name in tensors if not name.startswith(_MODEL)}
    samples = {name[len(_MODEL) :]: tensors[name] for name in tensors if name not in own}
    projector = _build(path, metadata, own)
    whose = metadata.get("model", "a model without a name")
    _check_model(f"{path} is for {whose}", projector.sizes["hidden_size"], samples, model)
    return projector


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


def _hidden_size(model: nn.Module) -> int:
    return find_embedding(model).get_parameter("weight").shape[1]


def _sample_weights(model: nn.Module) -> dict[str, Tensor]:
    """A few values of each matrix, evenly spread, by the matrix's name."""
    samples = {}
    for name, parameter in model.named_parameters():
        found = _SAMPLED.search(name)
        if found is not None:
            flat = parameter.detach().reshape(-1)
            samples[found[0]] = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].cpu()
    return samples


def _check_model(whose: str, width: int, samples: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise `CheckpointError` unless the samples are this model's, but for rounding."""
    if width != _hidden_size(model):
        raise CheckpointError(
            f"{whose} with hidden size {width}, and this model has {_hidden_size(model)}"
        )
    for name, values in _sample_weights(model).items():
        if name not in samples:
            raise CheckpointError(f"{whose}, which has no {name}, as this model has")
        if not _are_near(values, samples[name]):
            raise CheckpointError(f"{whose}, and this is another model: its {name} differs")


def _are_near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), _ROUNDING, 1e-7)


def _build(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Projector:
    """The projector of a file's metadata and tensors; `CheckpointError` if they are not sound."""
    if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
        raise CheckpointError(f"{path} holds no projector of version {VERSION}")
    sizes = parse_json_object(
        metadata.get("sizes", "").encode(), f"sizes in {path}", CheckpointError
    )
    try:
        with torch.device("meta"):  # until the tensors bear them out, the sizes are but claimed
            projector = Projector(**sizes)
        projector.load_state_dict(tensors, assign=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds a damaged projector: {error}") from error
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        raise CheckpointError(f"{path} holds a damaged projector: its layers differ in dtype")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise CheckpointError(f"{path} holds a projector whose weights are not all finite")
    return projector


def _make_entry(tensor: Tensor) -> TensorEntry:
    values = tensor.detach().cpu()
    values = values if values.dtype in _DTYPES else values.float()
    return TensorEntry(_DTYPES[values.dtype], tuple(values.shape), [values.numpy()])


def _read(stored: StoredTensor) -> Tensor:
    if stored.dtype not in _DTYPES:
        raise CheckpointError(f"{stored.file.path}: {stored.name!r} is {stored.dtype}, no float32")
    return stored.read()
