"""Phi in float64, for the errors of everyone else: the weights as they are, all arithmetic wide.

Written from the published architecture alone, and one block is widened at a time, so that a model
of 2.78B parameters fits beside it: x + dense(attention(norm(x))) + fc2(gelu(fc1(norm(x)))).
"""

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Callable[[str], Tensor]


def compute_states(
    weights: Mapping[str, Tensor], config: object, texts: list[list[int]]
) -> Iterator[list[Tensor]]:
    """The states of all texts, (T, hidden) float64 each: embeddings, blocks, final norm.

    L + 2 lists in all: the last block's output comes before and after the final norm.
    """
    table = weights["model.embed_tokens.weight"]
    ids = [torch.tensor(text, device=table.device) for text in texts]
    states = [F.embedding(text, table).double() for text in ids]
    yield states
    for layer in range(config.num_hidden_layers):
        block = widen_part(weights, f"model.layers.{layer}.")
        states = [run_block(x, block, config) for x in states]
        yield states
    norm = widen_part(weights, "model.final_layernorm.")
    yield [normalise(x, norm[""], config) for x in states]


def widen_part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and bias of each module below a prefix, in float64."""
    names = [name for name in weights if name.startswith(prefix) and name.endswith("weight")]
    return {
        name[len(prefix) : -len("weight")].rstrip("."): (
            weights[name].double(),
            weights[name[: -len("weight")] + "bias"].double(),
        )
        for name in names
    }


def run_block(x: Tensor, block: dict[str, tuple[Tensor, Tensor]], config: object) -> Tensor:
    normed = normalise(x, block["input_layernorm"], config)
    heads = (config.num_attention_heads, *[config.num_key_value_heads] * 2)
    q, k, v = (
        F.linear(normed, *block[f"self_attn.{name}_proj"])
        .unflatten(-1, (count, -1))
        .transpose(0, 1)
        for name, count in zip("qkv", heads, strict=True)
    )  # (heads, T, head_dim)
    q, k = rotate(q, config), rotate(k, config)
    shared = heads[0] // heads[1]
    z = attend(q, k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0))
    attention = F.linear(z.transpose(0, 1).flatten(1), *block["self_attn.dense"])
    wide = F.gelu(F.linear(normed, *block["mlp.fc1"]), approximate="tanh")
    return x + attention + F.linear(wide, *block["mlp.fc2"])


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1).to(q.device)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v


def rotate(x: Tensor, config: object) -> Tensor:
    """Turn the first dimensions of each head, in halves, by their place's angles."""
    rope = config.rope_parameters
    size = int(x.shape[-1] * rope["partial_rotary_factor"])
    powers = torch.arange(0, size, 2, dtype=torch.float64) / size
    angles = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * rope["rope_theta"] ** -powers
    cos, sin = angles.cos().to(x.device), angles.sin().to(x.device)
    first, second, rest = x.split([size // 2, size // 2, x.shape[-1] - size], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def normalise(x: Tensor, norm: tuple[Tensor, Tensor], config: object) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *norm, config.layer_norm_eps)
