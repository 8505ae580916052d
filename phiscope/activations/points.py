"""Points: the names of every place of the model that can be read or changed.

`POINTS` is the whole list, in the order a forward computes it. `resid_pre.L` and `resid_post.(L-1)`
are one place under two names (`resid_pre.0` is `embeddings`): what changes one changes the other.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering
from typing import Literal

from phiscope.config import PhiConfig
from phiscope.errors import PointError

RowShape = Literal["hidden", "heads", "kv_heads", "intermediate", "vocab", "map", "head"]
Place = tuple[str, int | None]


@dataclass(frozen=True)
class PointKind:
    """What lies at the points of one name."""

    name: str
    shape: RowShape
    """The shape of one token's row; "map" is per sequence (heads, T, K), "head" a number a head."""
    meaning: str
    hooks: tuple[str, ...]
    """TransformerLens' names, without the `blocks.L.` before them where there is a layer."""
    in_block: bool = True


POINTS: dict[str, PointKind] = {
    kind.name: kind
    for kind in (
        PointKind("embeddings", "hidden", "token embeddings", ("hook_embed",), in_block=False),
        PointKind("resid_pre", "hidden", "residual stream into the block", ("hook_resid_pre",)),
        PointKind(
            "ln_out",
            "hidden",
            "the block's LayerNorm with weight and bias, read by attention and MLP",
            ("ln1.hook_normalized", "ln2.hook_normalized"),
        ),
        PointKind("q", "heads", "queries before rotation", ("attn.hook_q",)),
        PointKind("k", "kv_heads", "keys before rotation", ("attn.hook_k",)),
        PointKind("v", "kv_heads", "values", ("attn.hook_v",)),
        PointKind("q_rot", "heads", "queries after rotation", ("attn.hook_rot_q",)),
        PointKind("k_rot", "kv_heads", "keys after rotation", ("attn.hook_rot_k",)),
        PointKind(
            "attn_scores",
            "map",
            "scaled scores before the softmax, -inf where masked",
            ("attn.hook_attn_scores",),
        ),
        PointKind("attn_probs", "map", "attention weights", ("attn.hook_pattern",)),
        PointKind("attn_entropy", "head", "entropy of each query's attention weights, in nats", ()),
        PointKind("attn_received", "head", "attention weight that each key gets in all", ()),
        PointKind("z", "heads", "the heads' outputs", ("attn.hook_z",)),
        PointKind("attn_out", "hidden", "attention's addition to the stream", ("hook_attn_out",)),
        PointKind("mlp_pre", "intermediate", "MLP before its activation", ("mlp.hook_pre",)),
        PointKind("mlp_act", "intermediate", "MLP after its activation", ("mlp.hook_post",)),
        PointKind("mlp_out", "hidden", "the MLP's addition to the stream", ("hook_mlp_out",)),
        PointKind("resid_post", "hidden", "residual stream out of the block", ("hook_resid_post",)),
        PointKind(
            "final_norm",
            "hidden",
            "after the final LayerNorm, with weight and bias",
            ("ln_final.hook_normalized",),
            in_block=False,
        ),
        PointKind("logits", "vocab", "the head's output", (), in_block=False),
    )
}

_ABSENT = {
    "resid_mid": "Phi's blocks are parallel: attention and MLP read one LayerNorm and are added at"
    " once, so no stream lies between them; take resid_pre, attn_out and mlp_out",
    "hook_result": "take z: head h adds z[:, h] @ dense.weight[:, h * D : (h + 1) * D].T",
    "hook_scale": "take resid_pre, or ln_out for the normalised stream",
    "hook_pos_embed": "Phi's positions are rotations, not added to the stream; take embeddings",
}
_RANKS = {name: rank for rank, name in enumerate(POINTS)}
_HOOKS = {hook: kind for kind in POINTS.values() for hook in kind.hooks}
_INDEX = r"(?P<index>-?\d{1,9}|\[[^\[\]]*\])"
_OURS = re.compile(rf"(?P<name>\w+)(\.{_INDEX})?")
_HOOKED = re.compile(rf"blocks\.{_INDEX}\.(?P<name>[\w.]+)")
_LISTED = re.compile(r"(?P<name>hidden_states|attentions)(?P<index>\[[^\[\]]*\])")
_INTEGER = re.compile(r"[+-]?\d{1,9}")


@total_ordering
@dataclass(frozen=True)
class Point:
    """One place of the model; points sort in the order a forward computes them."""

    name: str
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.name not in POINTS:
            raise PointError(_unknown(self.name))
        if POINTS[self.name].in_block != (self.layer is not None):
            raise PointError(_misplaced(self.name))
        if self.layer is not None and self.layer < 0:
            raise PointError(f"layer {self.layer} of {self.name} must not be negative")

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name}.{self.layer}"

    def __lt__(self, other: "Point") -> bool:
        return self._order < other._order

    @property
    def kind(self) -> PointKind:
        return POINTS[self.name]

    @property
    def place(self) -> Place:
        """Where a forward shows it: that of `resid_post.(L-1)` for `resid_pre.L`."""
        if self.is_summary:
            return "attn_probs", self.layer
        if self.name != "resid_pre":
            return self.name, self.layer
        return ("resid_post", self.layer - 1) if self.layer else ("embeddings", None)

    @property
    def is_summary(self) -> bool:
        """Whether it is computed from an attention map: readable, but nothing to edit."""
        return self.kind.shape == "head"

    @property
    def depth(self) -> int | None:
        """Blocks that must run before it is known; None: all, and what follows them."""
        name, layer = self.place
        if layer is not None:
            return layer + 1
        return 0 if name == "embeddings" else None

    @property
    def _order(self) -> tuple[float, int]:
        if self.layer is not None:
            return self.layer, _RANKS[self.name]
        return (-1 if self.name == "embeddings" else float("inf")), _RANKS[self.name]


PointSpec = str | Point | Iterable[str | Point]


def resolve_points(
    spec: PointSpec, num_layers: int, loaded_layers: int | None = None
) -> list[Point]:
    """The points that a spec names, each once, in the order given.

    Understood: `resid_post.16`, `resid_post.-1` (from the end), `resid_post.[8:24:4]`,
    `resid_post.[3,5]`, several with commas between, TransformerLens' `blocks.16.hook_resid_post`,
    and transformers' `hidden_states[17]` and `attentions[3]`. Layers are those of the whole model,
    also when only `loaded_layers` of them were loaded. Raises `PointError` for what is not there.
    """
    items = [spec] if isinstance(spec, str | Point) else list(spec)
    points: dict[Point, None] = {}
    for item in items:
        named = [item] if isinstance(item, Point) else _parse(item, num_layers)
        points.update(dict.fromkeys(named))
    if not points:
        raise PointError("no points were named; name some, such as resid_post.0")
    for point in points:
        _check_loaded(point, num_layers, loaded_layers)
    return list(points)


def row_shape(point: Point, config: PhiConfig) -> tuple[int, ...] | None:
    """The shape of one token's row at a point; None for maps, which are per sequence."""
    shapes: dict[RowShape, tuple[int, ...] | None] = {
        "hidden": (config.hidden_size,),
        "heads": (config.num_attention_heads, config.head_dim),
        "kv_heads": (config.num_key_value_heads, config.head_dim),
        "intermediate": (config.intermediate_size,),
        "vocab": (config.vocab_size,),
        "map": None,
        "head": (config.num_attention_heads,),
    }
    return shapes[point.kind.shape]


def _parse(text: str, num_layers: int) -> list[Point]:
    if not isinstance(text, str):
        raise TypeError(f"a point is a string or a Point, got {type(text).__name__}")
    items = (item.strip() for item in re.split(r",(?![^\[]*\])", text))
    return [point for item in items for point in _parse_one(item, num_layers)]


def _parse_one(item: str, num_layers: int) -> list[Point]:
    if match := _LISTED.fullmatch(item):
        return _parse_listed(item, match["name"], match["index"], num_layers)
    if match := _HOOKED.fullmatch(item):
        return _parse_hook(item, match["name"], match["index"], num_layers)
    if item in _HOOKS:
        return [Point(_HOOKS[item].name)]
    match = _OURS.fullmatch(item)
    if match is None or match["name"] not in POINTS:
        raise PointError(_unknown(match["name"] if match else item))
    if match["index"] is None:
        return [Point(match["name"])]
    layers = _select(item, match["index"], num_layers)
    return [Point(match["name"], layer) for layer in layers]


def _parse_hook(item: str, hook: str, index: str, num_layers: int) -> list[Point]:
    kind = _HOOKS.get(hook)
    if kind is None or not kind.in_block:
        raise PointError(_unknown(hook))
    return [Point(kind.name, layer) for layer in _select(item, index, num_layers)]


def _parse_listed(item: str, name: str, index: str, num_layers: int) -> list[Point]:
    if name == "attentions":
        return [Point("attn_probs", layer) for layer in _select(item, index, num_layers)]
    states = _select(item, index, num_layers + 1)
    return [transformers_state(state, num_layers) for state in states]


def transformers_state(index: int, num_layers: int) -> Point:
    """The point that transformers returns as `hidden_states[index]`, 0 <= index <= num_layers."""
    if not 0 <= index <= num_layers:
        raise PointError(f"transformers has hidden_states[0] to [{num_layers}], got {index}")
    if index == num_layers:
        return Point("final_norm")
    return Point("resid_post", index - 1) if index else Point("embeddings")


def _select(item: str, index: str, count: int) -> list[int]:
    """The numbers below `count` that an index, a `[start:stop:step]` or an `[i,j]` means."""
    inner = index.strip("[]").strip()
    if ":" in inner:
        return _select_range(item, inner, count)
    return [_within(item, part.strip(), count) for part in inner.split(",")]


def _select_range(item: str, inner: str, count: int) -> list[int]:
    parts = [part.strip() for part in inner.split(":")]
    if len(parts) > 3 or not all(part == "" or _INTEGER.fullmatch(part) for part in parts):
        raise PointError(f"{item}: a range is written [start:stop:step]")
    start, stop, step = (int(part) if part else None for part in (*parts, "")[:3])
    if step is not None and step < 1:
        raise PointError(f"{item}: the step of a range must be at least 1, got {step}")
    for border in (start, stop):
        if border is not None and not -count <= border <= count:
            raise PointError(f"{item}: {border} is outside 0 to {count - 1}, all that there is")
    chosen = list(range(count))[start:stop:step]
    if not chosen:
        raise PointError(f"{item}: the range is empty; indices are 0 to {count - 1}")
    return chosen


def _within(item: str, text: str, count: int) -> int:
    if not _INTEGER.fullmatch(text):
        raise PointError(f"{item}: {text!r} is not an integer")
    number = int(text)
    if not -count <= number < count:
        raise PointError(
            f"{item}: indices are 0 to {count - 1}, or -{count} to -1 from the end, got {number}"
        )
    return number % count


def _check_loaded(point: Point, num_layers: int, loaded_layers: int | None) -> None:
    if point.layer is not None and point.layer >= num_layers:
        raise PointError(f"{point}: this model has layers 0 to {num_layers - 1}")
    if loaded_layers is None:
        return
    if point.depth is None:
        remedy = "load it without layers="
    elif point.depth > loaded_layers:
        remedy = f"load it with layers={point.depth} or more"
    else:
        return
    raise PointError(f"{point} lies above the {loaded_layers} blocks that were loaded; {remedy}")


def _misplaced(name: str) -> str:
    if POINTS[name].in_block:
        return f"{name} needs a layer, such as {name}.0, or {name}.[:] for all layers"
    return f"{name} has no layer: write {name} alone"


def _unknown(name: str) -> str:
    absent = next((text for key, text in _ABSENT.items() if name.endswith(key)), None)
    if absent is not None:
        return f"there is no point {name!r}: {absent}"
    close = difflib.get_close_matches(name, [*POINTS, *_HOOKS], n=3)
    known = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(POINTS)}"
    return f"there is no point {name!r}; {known}"
