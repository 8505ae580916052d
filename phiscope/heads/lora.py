"""LoRA: low-rank changes to frozen linear layers, and the file they are kept in.

A layer's W x + b becomes W x + b + (alpha / rank) B A x, with A (rank, in) and B (out, rank) in
fp32 and B zero at first. W may be of floats, of narrow floats with fp32 arithmetic, or of integers
(QLoRA): whatever passes gradients on. Layers have our model's names, in every checkpoint layout.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phiscope.errors import CheckpointError, UnsupportedError
from phiscope.heads.model_file import read_model_file, write_model_file
from phiscope.model import PhiForCausalLM
from phiscope.quantized import QuantizedLinear
from phiscope.strict import parse_json_object

FORMAT = "phiscope-LoRA adapter"
VERSION = 1
LAYERS = ("qkv_proj", "dense", "fc1", "fc2")
"""The linear layers of a block."""


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Which layers are changed, and by how much."""

    rank: int = 16
    alpha: float = 32.0
    """The change is multiplied by alpha / rank."""
    layers: tuple[str, ...] = LAYERS

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"rank is an integer from 1, got {self.rank!r}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha must be above 0, got {self.alpha}")
        unknown = [name for name in self.layers if name not in LAYERS]
        if unknown or not self.layers:
            raise ValueError(f"layers are some of {', '.join(LAYERS)}, got {list(self.layers)}")


class LoraLinear(nn.Module):
    """A frozen linear layer and its change."""

    def __init__(self, base: nn.Module, options: LoraOptions) -> None:
        super().__init__()
        outs, width = _read_shape(base)
        self.base = base
        self.scale = options.alpha / options.rank
        self.lora_a = nn.Parameter(torch.empty(options.rank, width))
        self.lora_b = nn.Parameter(torch.zeros(outs, options.rank))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        change = F.linear(F.linear(x, self.lora_a.to(x.dtype)), self.lora_b.to(x.dtype))
        return y + self.scale * change.to(y.dtype)

    def merged_weight(self) -> Tensor:
        """(out, in): the base's weight with the change added in fp32, in the base's dtype."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        change = self.scale * (self.lora_b @ self.lora_a)
        return (weight.float() + change).to(weight.dtype).detach()


def add_lora(
    model: PhiForCausalLM, options: LoraOptions, *, seed: int | None = 0
) -> PhiForCausalLM:
    """Freeze a model and put changes beside its layers, in place; gives the model.

    Its output is what it was until the changes are trained, but that integer layers leave
    activations unrounded from now on. A is drawn uniformly as `nn.Linear` draws its weights;
    without a seed A is left for `load_lora` to fill.
    """
    if any(True for _ in list_lora(model)):
        raise ValueError("the model has a LoRA already: merge it, or load the model anew")
    model.requires_grad_(False)
    _let_gradients_pass(model)
    generator = torch.Generator().manual_seed(seed or 0)
    for block in model.model.layers:
        for parent in (block.get_submodule("self_attn"), block.get_submodule("mlp")):
            for name, layer in list(parent.named_children()):
                if name in options.layers:
                    changed = LoraLinear(layer, options)
                    if seed is not None:
                        nn.init.kaiming_uniform_(changed.lora_a, math.sqrt(5), generator=generator)
                    setattr(parent, name, changed)
    return model


def list_lora(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The changed layers, by name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def merge_lora(model: PhiForCausalLM) -> PhiForCausalLM:
    """Put plain layers in the places of changed ones, in place; gives the model.

    Raises `UnsupportedError` for integer weights, which cannot hold the sum: merge the adapter into
    a model of floats.
    """
    changed = list(list_lora(model))
    if any(isinstance(layer.base, QuantizedLinear) for _, layer in changed):
        raise UnsupportedError("integer weights hold no merged LoRA: load the model as floats")
    for name, layer in changed:
        base = layer.base
        assert isinstance(base.weight, nn.Parameter)
        with torch.no_grad():
            base.weight.copy_(layer.merged_weight())
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, base)
    return model


def save_lora(
    path: Path | str,
    model: PhiForCausalLM,
    options: LoraOptions,
    *,
    samples: Mapping[str, Tensor],
    model_name: str | None = None,
) -> None:
    """Write a model's changes: the file is there whole or not at all.

    `samples` are `sample_weights` of the model before the changes. Raises `StoreError` for a file
    that cannot be written.
    """
    metadata = {"format": FORMAT, "version": str(VERSION), "options": json.dumps(asdict(options))}
    if model_name is not None:
        metadata["model"] = model_name
    tensors = {
        f"{name}.{part}": getattr(layer, part)
        for name, layer in list_lora(model)
        for part in ("lora_a", "lora_b")
    }
    write_model_file(Path(path), tensors, metadata, samples)


def load_lora(path: Path | str, model: PhiForCausalLM) -> LoraOptions:
    """Put the changes of a file beside the layers of the model it was trained with, in place.

    The model may be in another dtype now, or of integers, of which only what is left of the floats
    is compared. Raises `CheckpointError` for a damaged file, and for another model.
    """
    file = read_model_file(Path(path), format=FORMAT, version=VERSION)
    file.check_model(model, common=True)
    options = _read_options(file.path, file.metadata)
    wanted = {
        f"{prefix}.{layer}.{part}"
        for prefix, layer in _list_layers(model, options)
        for part in ("lora_a", "lora_b")
    }
    if wanted != set(file.tensors):
        wrong = sorted(wanted.symmetric_difference(file.tensors))[0]
        raise CheckpointError(f"{path} holds a damaged LoRA adapter, or of another model: {wrong}")
    add_lora(model, options, seed=None)
    for name, layer in list_lora(model):
        for part in ("lora_a", "lora_b"):
            _fill(getattr(layer, part), file.tensors[f"{name}.{part}"], f"{path}: {name}.{part}")
    return options


def _list_layers(model: PhiForCausalLM, options: LoraOptions) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        if name.endswith((".self_attn", ".mlp")):
            for child, _ in module.named_children():
                if child in options.layers:
                    yield name, child


def _fill(parameter: nn.Parameter, values: Tensor, what: str) -> None:
    if parameter.shape != values.shape:
        raise CheckpointError(f"{what} is {tuple(values.shape)}, not {tuple(parameter.shape)}")
    with torch.no_grad():
        parameter.copy_(values)


def _read_options(path: Path, metadata: Mapping[str, str]) -> LoraOptions:
    given = parse_json_object(
        metadata.get("options", "").encode(), f"options in {path}", CheckpointError
    )
    try:
        return LoraOptions(**given)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds a damaged LoRA adapter: {error}") from error


def _read_shape(layer: nn.Module) -> tuple[int, int]:
    """Outputs and inputs."""
    if isinstance(layer, QuantizedLinear):
        return layer.out_features, layer.in_features
    weight = layer.get_parameter("weight")
    return weight.shape[0], weight.shape[1]


def _let_gradients_pass(model: PhiForCausalLM) -> None:
    """Integer layers leave activations as they are from now on: their gradients are exact."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, QuantizedLinear) and not layer.wide:
                setattr(parent, name, layer.widened())
