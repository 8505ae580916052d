"""Rotary position embedding: the first `rotary_dim` dims of each head, halves turned (NeoX style).

Angles, tables and the rotation itself are in fp32 at least, whatever the model's dtype is: this is
what the published weights were trained with.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from phiscope.config import PhiConfig, RopeScaling

Frequencies = tuple[Tensor, float]
"""Radians per position (rotary_dim / 2,), and the factor on cosine and sine."""
Rotation = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`rotate`, or what does the same."""


def make_tables(config: PhiConfig, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position of the context, each (positions, rotary_dim / 2) fp32."""
    places = torch.arange(config.max_position_embeddings)
    cos, sin = make_rotations(places, rotary_frequencies(config))
    return cos.to(device), sin.to(device)


def make_rotations(positions: Tensor, frequencies: Frequencies) -> tuple[Tensor, Tensor]:
    """Cosines and sines at positions (...), each (..., rotary_dim / 2) fp32."""
    radians, factor = frequencies
    angles = positions[..., None].float() * radians
    return angles.cos() * factor, angles.sin() * factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head of x (..., heads, head_dim) by its token's angles (..., rotary_dim / 2)."""
    half = cos.shape[-1]
    cos, sin = cos[..., None, :], sin[..., None, :]  # (..., 1, rotary_dim / 2)
    turned, kept = x[..., : 2 * half], x[..., 2 * half :]
    first, second = turned[..., :half], turned[..., half:]
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((rotated.to(x.dtype), kept), dim=-1)


def rotary_frequencies(config: PhiConfig, num_tokens: int = 0) -> Frequencies:
    """The frequencies of a config, scaled as its `rope_scaling` says.

    `num_tokens` beyond the context change those of dynamic scaling only.
    """
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
    base = config.rope_theta * _stretch(config, num_tokens)
    frequencies = 1.0 / base**exponents
    if config.rope_scaling is None:
        return frequencies, 1.0
    return SCALINGS[config.rope_scaling.rope_type](frequencies, config, config.rope_scaling)


def _stretch(config: PhiConfig, num_tokens: int) -> float:
    """What dynamic scaling multiplies the base by (NTK-aware, as transformers does)."""
    scaling, dim = config.rope_scaling, config.rotary_dim
    ratio = num_tokens / config.max_position_embeddings
    if scaling is None or scaling.rope_type != "dynamic" or ratio <= 1.0:
        return 1.0
    return float((scaling.factor * ratio - (scaling.factor - 1.0)) ** (dim / (dim - 2)))


def _linear(frequencies: Tensor, config: PhiConfig, scaling: RopeScaling) -> Frequencies:
    return frequencies / scaling.factor, 1.0


def _dynamic(frequencies: Tensor, config: PhiConfig, scaling: RopeScaling) -> Frequencies:
    """Dynamic NTK changes the base, and nothing within the trained context: see `_stretch`."""
    return frequencies, 1.0


def _llama3(frequencies: Tensor, config: PhiConfig, scaling: RopeScaling) -> Frequencies:
    """Slow waves are stretched by `factor`, quick ones kept, those between blended (Llama 3.1)."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    context = scaling.original_max_position_embeddings
    assert low is not None
    assert high is not None
    assert context is not None
    wavelengths = 2 * math.pi / frequencies
    blend = ((context / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies, 1.0


def _yarn(frequencies: Tensor, config: PhiConfig, scaling: RopeScaling) -> Frequencies:
    """NTK by parts with a temperature on the scores (YaRN, arXiv:2309.00071)."""
    context = scaling.original_max_position_embeddings or config.max_position_embeddings

    def dim_of(rotations: float) -> float:
        turns = math.log(context / (rotations * 2 * math.pi))
        return float(config.rotary_dim * turns / (2 * math.log(config.rope_theta)))

    low, high = dim_of(scaling.beta_fast or 32.0), dim_of(scaling.beta_slow or 1.0)
    if scaling.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_dim - 1)
    ramp = (torch.arange(len(frequencies)).float() - low) / max(high - low, 0.001)
    stretch = ramp.clamp(0, 1)
    scaled = frequencies / scaling.factor * stretch + frequencies * (1 - stretch)
    return scaled, _temperature(scaling)


def _temperature(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    growth = 0.1 * math.log(scaling.factor)
    if scaling.mscale and scaling.mscale_all_dim:
        return (growth * scaling.mscale + 1.0) / (growth * scaling.mscale_all_dim + 1.0)
    return growth + 1.0


SCALINGS: dict[str, Callable[[Tensor, PhiConfig, RopeScaling], Frequencies]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}
