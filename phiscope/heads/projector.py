"""The projector between a feature extractor and a language model, and its file."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phiscope.errors import CheckpointError
from phiscope.heads.model_file import (
    find_embedding,
    read_model_file,
    sample_weights,
    write_model_file,
)
from phiscope.strict import parse_json_object

FORMAT = "phiscope-projector"
VERSION = 1


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
    write_model_file(Path(path), projector.state_dict(), metadata, sample_weights(model))


def load_projector(path: Path | str, model: nn.Module) -> Projector:
    """Read a projector for the model that it was trained with, which may be in another dtype now.

    It comes on the CPU, in the dtype of the file. Raises `CheckpointError` for a damaged file, and
    for another model, with what differs.
    """
    file = read_model_file(Path(path), format=FORMAT, version=VERSION)
    projector = _build(file.path, file.metadata, file.tensors)
    width = projector.sizes["hidden_size"]
    if width != _hidden_size(model):
        raise CheckpointError(
            f"{file.whose} with hidden size {width}, and this model has {_hidden_size(model)}"
        )
    file.check_model(model)
    return projector


def _hidden_size(model: nn.Module) -> int:
    return find_embedding(model).get_parameter("weight").shape[1]


def _build(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Projector:
    """The projector of a file's metadata and tensors; `CheckpointError` if they are not sound."""
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
    return projector
