"""The four namings of a Phi checkpoint's tensors, as tables, and how their rows become ours.

Our names and row orders are the model's own: block names as in transformers, and one `qkv_proj`
with all query heads first, then the key heads, then the value heads.

    A  mixformer       layers.1.mixer.Wqkv.weight               rows: (three, heads, head_dim)
    B  phi-msft        transformer.h.0.mixer.Wqkv.weight        rows: (three, heads, head_dim)
    C  transformers    model.layers.0.self_attn.query_key_value rows: (heads, three, head_dim)
       4.36
    D  transformers    model.layers.0.self_attn.{q,k,v}_proj    rows: (heads, head_dim) each
       since 4.37
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from phiscope.config import PhiConfig
from phiscope.dialects import Dialect
from phiscope.errors import CheckpointError, UnsupportedError

Layout = Literal["A", "B", "C", "D"]
Shape = tuple[int, ...]

LAYOUTS: tuple[Layout, ...] = ("A", "B", "C", "D")
DIALECTS: dict[Layout, Dialect] = {"A": "mixformer", "B": "phi-msft", "C": "phi4", "D": "phi5"}


@dataclass(frozen=True)
class Piece:
    """Rows `start` on of a stored tensor are rows `target` on of ours, `rows` of them."""

    name: str
    start: int
    target: int
    rows: int


@dataclass(frozen=True)
class _Names:
    """One layout's names; `{n}` is the block's number and `{m}` the number after it."""

    block: str
    embed: str
    norm: str
    head: str
    qkv: str | tuple[str, str, str]
    dense: str
    block_norm: str


_NAMES: dict[Layout, _Names] = {
    "A": _Names(
        block="layers.{m}",
        embed="layers.0.wte",
        norm="layers.{m}.ln",
        head="layers.{m}.linear",
        qkv="mixer.Wqkv",
        dense="mixer.out_proj",
        block_norm="ln",
    ),
    "B": _Names(
        block="transformer.h.{n}",
        embed="transformer.embd.wte",
        norm="lm_head.ln",
        head="lm_head.linear",
        qkv="mixer.Wqkv",
        dense="mixer.out_proj",
        block_norm="ln",
    ),
    "C": _Names(
        block="model.layers.{n}",
        embed="model.embed_tokens",
        norm="model.final_layernorm",
        head="lm_head",
        qkv="self_attn.query_key_value",
        dense="self_attn.dense",
        block_norm="input_layernorm",
    ),
    "D": _Names(
        block="model.layers.{n}",
        embed="model.embed_tokens",
        norm="model.final_layernorm",
        head="lm_head",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        dense="self_attn.dense",
        block_norm="input_layernorm",
    ),
}
_SIGNS: dict[Layout, re.Pattern[str]] = {  # names that no other layout has
    "A": re.compile(r"layers\.\d+\."),
    "B": re.compile(r"transformer\.|lm_head\.(ln|linear)\."),
    "C": re.compile(r"model\.layers\.\d+\.self_attn\.query_key_value\."),
    "D": re.compile(r"model\.layers\.\d+\.self_attn\.[qkv]_proj\."),
}
_LEGACY = (  # spellings of the earliest files, and today's
    (".mlp.fc_in.", ".mlp.fc1."),
    (".mlp.fc_out.", ".mlp.fc2."),
    (".mlp.mlp.fc1.", ".mlp.fc1."),
    (".mlp.mlp.fc2.", ".mlp.fc2."),
)
_BUFFERS = re.compile(  # computed from the config, never weights
    r"(.*\.)?(rotary_emb\.(inv_freq|scale)|attn\.(masked_bias|bias)|self_attn\.masked_bias)"
)


def detect_layout(names: Iterable[str]) -> Layout:
    """The layout a checkpoint's tensor names are in; `CheckpointError` if none, or several."""
    names = list(names)
    found = [layout for layout in LAYOUTS if any(_SIGNS[layout].match(name) for name in names)]
    if len(found) == 1:
        return found[0]
    first = ", ".join(repr(name) for name in names[:5]) or "none"
    if found:
        raise CheckpointError(f"tensor names mix the layouts {found}; the first are {first}")
    raise CheckpointError(f"tensor names are of no Phi layout; the first are {first}")


def modernise(names: Iterable[str]) -> dict[str, str]:
    """Today's name of each stored weight, and the name it is stored under; buffers are left out."""
    result: dict[str, str] = {}
    for stored in names:
        if _BUFFERS.fullmatch(stored):
            continue
        name = stored
        for old, new in _LEGACY:
            name = name.replace(old, new)
        if name in result:
            raise CheckpointError(f"{stored!r} and {result[name]!r} are the same tensor {name!r}")
        result[name] = stored
    return result


def our_shapes(config: PhiConfig, *, layers: int | None = None) -> dict[str, Shape]:
    """Name and shape of each of the model's parameters, in its order; of the first blocks only."""
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    qkv = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    block = _weight_and_bias("input_layernorm", hidden)
    block |= _weight_and_bias("self_attn.qkv_proj", qkv, hidden)
    block |= _weight_and_bias("self_attn.dense", hidden, hidden)
    for norm in ("q_layernorm", "k_layernorm") if config.qk_layernorm else ():
        block |= _weight_and_bias(f"self_attn.{norm}", config.head_dim)
    block |= _weight_and_bias("mlp.fc1", inner, hidden) | _weight_and_bias("mlp.fc2", hidden, inner)
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config.num_hidden_layers if layers is None else layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    if layers is None:
        shapes |= _weight_and_bias("model.final_layernorm", hidden)
        shapes |= _weight_and_bias("lm_head", vocab, hidden)
    return shapes


def find_pieces(
    config: PhiConfig, layout: Layout, *, layers: int | None = None
) -> dict[str, list[Piece]]:
    """For each of our tensors the stored rows that make it up, in that layout.

    Raises `UnsupportedError` for what a layout cannot express.
    """
    _check_expressible(config, layout)
    shapes = our_shapes(config, layers=layers)
    return {name: _pieces_of(config, layout, name, shape[0]) for name, shape in shapes.items()}


def stored_shapes(config: PhiConfig, layout: Layout) -> dict[str, Shape]:
    """Name and shape of every tensor of a whole checkpoint in that layout."""
    ours = our_shapes(config)
    stored: dict[str, Shape] = {}
    for name, pieces in find_pieces(config, layout).items():
        for piece in pieces:
            rows = stored.get(piece.name, (0,))[0] + piece.rows
            stored[piece.name] = (rows, *ours[name][1:])
    return stored


def check_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape], *, where: str) -> None:
    """Raise `CheckpointError` listing the first five tensors that are missing, extra or misshapen.

    `found` has today's names.
    """
    faults = [f"no {name!r}" for name in expected if name not in found]
    faults += [
        f"{name!r} has shape {list(found[name])}, the config wants {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    faults += [f"unknown {name!r}" for name in found if name not in expected]
    if faults:
        rest = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{where} does not fit its config: {'; '.join(faults[:5])}{rest}")


def _weight_and_bias(name: str, rows: int, *columns: int) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, *columns), f"{name}.bias": (rows,)}


def _check_expressible(config: PhiConfig, layout: Layout) -> None:
    if layout == "C" and config.num_key_value_heads != config.num_attention_heads:
        raise UnsupportedError(
            "layout C interleaves q, k and v per head, so it has no form for fewer key-value "
            "heads; use layout D"
        )
    if layout in ("A", "B") and config.qk_layernorm:
        raise UnsupportedError(f"layout {layout} has no names for qk_layernorm; use layout D")


def _pieces_of(config: PhiConfig, layout: Layout, name: str, rows: int) -> list[Piece]:
    module, kind = name.rsplit(".", 1)
    if not module.endswith("self_attn.qkv_proj"):
        return [Piece(f"{_stored_module(config, layout, module)}.{kind}", 0, 0, rows)]
    prefix = module.removesuffix("self_attn.qkv_proj")
    stored = _NAMES[layout].qkv
    if not isinstance(stored, str):
        names = [f"{_stored_block(layout, prefix)}{part}.{kind}" for part in stored]
        return _split(names, config)
    fused = f"{_stored_block(layout, prefix)}{stored}.{kind}"
    return _interleaved(fused, config) if layout == "C" else [Piece(fused, 0, 0, rows)]


def _split(names: Collection[str], config: PhiConfig) -> list[Piece]:
    """q, k and v in three tensors."""
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    targets = (0, queries, queries + keys)
    return [
        Piece(name, 0, target, rows)
        for name, target, rows in zip(names, targets, (queries, keys, keys), strict=True)
    ]


def _interleaved(name: str, config: PhiConfig) -> list[Piece]:
    """Per head its q, its k and its v."""
    heads, size = config.num_attention_heads, config.head_dim
    return [
        Piece(name, (3 * head + part) * size, (part * heads + head) * size, size)
        for head in range(heads)
        for part in range(3)
    ]


def _stored_module(config: PhiConfig, layout: Layout, module: str) -> str:
    """The stored name of one of our modules that is stored as it is."""
    names, last = _NAMES[layout], config.num_hidden_layers
    whole = {
        "model.embed_tokens": names.embed,
        "model.final_layernorm": names.norm.format(m=last + 1),
        "lm_head": names.head.format(m=last + 1),
    }
    if module in whole:
        return whole[module]
    _, _, layer, inner = module.split(".", 3)
    renamed = {"input_layernorm": names.block_norm, "self_attn.dense": names.dense}
    return _stored_block(layout, f"model.layers.{layer}.") + renamed.get(inner, inner)


def _stored_block(layout: Layout, prefix: str) -> str:
    """The stored prefix of a block, given ours: `model.layers.3.`"""
    number = int(prefix.split(".")[2])
    return _NAMES[layout].block.format(n=number, m=number + 1) + "."
