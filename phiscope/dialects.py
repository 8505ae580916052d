"""The four spellings of a Phi config, as tables of names, and the rules each adds.

Two are Microsoft's (`mixformer-sequential`, `phi-msft`: `n_embd` ...), two transformers' (`phi`
before and since version 5). Everything here turns dicts into dicts; `config.py` checks the values.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from phiscope.errors import ConfigError, UnsupportedError
from phiscope.strict import check_integer, check_number, expect

Dialect = Literal["mixformer", "phi-msft", "phi4", "phi5"]

QUANTIZATION = "phiscope_quantization"
"""The key that says how integer weights are stored, and by which version of that."""
_QUANTIZATION_VERSION = 1

WRITERS: dict[str, tuple[str, str, str]] = {  # dialect: (model_type, architecture, dtype's key)
    "mixformer": ("mixformer-sequential", "MixFormerSequentialForCausalLM", "torch_dtype"),
    "phi-msft": ("phi-msft", "PhiForCausalLM", "torch_dtype"),
    "phi4": ("phi", "PhiForCausalLM", "torch_dtype"),
    "phi5": ("phi", "PhiForCausalLM", "dtype"),
}
ROPE_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # type: (required, optional)
    "linear": (("factor",), ("original_max_position_embeddings",)),
    "dynamic": (("factor",), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "llama3": (
        *(("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),),
        (),
    ),
}

_SAME = (
    *("vocab_size", "embd_pdrop", "resid_pdrop", "initializer_range"),
    *("bos_token_id", "eos_token_id"),
)
_GPT_NAMES = {name: name for name in (*_SAME, "rotary_dim")} | {  # ours: theirs
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_head_kv",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
    "attention_dropout": "attn_pdrop",
}
_PHI_NAMES = {
    name: name
    for name in (
        *(*_SAME, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings", "layer_norm_eps", "hidden_act"),
        *("attention_dropout", "qk_layernorm"),
    )
}
_GPT_DEFAULTS = {  # what the original code takes for an absent key
    **{"vocab_size": 50304, "hidden_size": 1024, "num_hidden_layers": 20},
    **{"num_attention_heads": 16, "rotary_dim": 32},
}
_PHI_DEFAULTS = {  # what transformers takes for an absent key
    **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24},
    **{"num_attention_heads": 32, "max_position_embeddings": 2048},
}
_FAMILIES: dict[str, tuple[dict[str, str], dict[str, int]]] = {  # model_type: (names, defaults)
    "mixformer-sequential": (_GPT_NAMES, _GPT_DEFAULTS),
    "phi-msft": (_GPT_NAMES, _GPT_DEFAULTS),
    "phi": (_PHI_NAMES, _PHI_DEFAULTS),
}
_CONSUMED = (
    *("model_type", "architectures", "torch_dtype", "dtype", "tie_word_embeddings", "head_dim"),
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", QUANTIZATION),
)
_CARRIED = ("pad_token_id", "use_cache")


def read_dialect(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`PhiConfig`'s values from a config of any dialect, told by its `model_type`.

    Raises `UnsupportedError` for other families, mixtures of experts and quantized weights.
    """
    family = _select_family(raw)
    _refuse_variants(raw)
    names, defaults = _FAMILIES[family]
    given = {ours: raw[key] for ours, key in names.items() if raw.get(key) is not None}
    extra = {key: raw[key] for key in raw if key not in {*names.values(), *_CONSUMED}}
    values = defaults | given | _dtype_of(raw) | _end_token_of(raw, extra)
    values |= _quantization_of(raw)
    values |= _fill_phi(raw, values) if family == "phi" else _fill_gpt(raw, values, extra)
    return values | {"extra": extra}


def write_dialect(values: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    """The `config.json` of that dialect; `UnsupportedError` where it cannot say a value."""
    if dialect not in WRITERS:
        raise ValueError(f"no dialect {dialect!r}; choose from {sorted(WRITERS)}")
    family, architecture, dtype_key = WRITERS[dialect]
    written: dict[str, Any] = {"model_type": family, "architectures": [architecture]}
    written |= {key: values[ours] for ours, key in _FAMILIES[family][0].items()}
    written |= {"tie_word_embeddings": False, dtype_key: values["dtype"]}
    written |= {key: values["extra"][key] for key in _CARRIED if key in values["extra"]}
    written |= _write_quantization(values["quantization"], dialect)
    if family == "phi":
        return written | _write_rope(values, dialect)
    if values["rope_scaling"] or values["rope_theta"] != 10000.0 or values["qk_layernorm"]:
        raise UnsupportedError(
            f"the dialect {dialect!r} cannot express rope_scaling, a rope_theta other than 10000 "
            "or qk_layernorm; use 'phi5' (layout D)"
        )
    # Its readers round vocab_size up to this multiple: 1 says the rows are exactly these.
    return written | {"pad_vocab_size_multiple": 64 if values["vocab_size"] % 64 == 0 else 1}


def no_rope_type(kind: object) -> UnsupportedError:
    return UnsupportedError(
        f"no rope scaling of type {kind!r}; choose from {sorted(ROPE_FIELDS)} (longrope needs "
        "per-dimension factors, which Phi-2's code never had)"
    )


def _select_family(raw: Mapping[str, Any]) -> str:
    family = raw.get("model_type")
    if family is None:
        raise ConfigError(f"the config has no model_type; Phi's are {sorted(_FAMILIES)}")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise UnsupportedError(
            f"model_type {family!r} is another family; Phiscope runs {sorted(_FAMILIES)} "
            "(phi-1, phi-1.5, phi-2 and their fine-tunes)"
        )
    return family


def _refuse_variants(raw: Mapping[str, Any]) -> None:
    """Refuse what says Phi and computes something else, which would be silently wrong."""
    if raw.get("num_local_experts") is not None or raw.get("num_experts_per_tok") is not None:
        raise UnsupportedError("a mixture of experts (phixtral) is another family than Phi")
    quantization = raw.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        raise UnsupportedError(
            f"weights quantized by {method or 'an unnamed method'} cannot be read; take the "
            "float checkpoint and quantize when loading"
        )
    if raw.get("tie_word_embeddings"):
        raise UnsupportedError("tie_word_embeddings is true, but Phi's head has its own weights")
    _refuse_architecture(raw.get("architecture"))


def _refuse_architecture(found: object) -> None:
    """The oldest configs name the classes of a block: only Phi's are Phi."""
    if not isinstance(found, Mapping):
        return
    mlp = found.get("mlp")
    block_class = found.get("block_cls") or "parallel"
    mlp_class = (mlp.get("mlp_cls") if isinstance(mlp, Mapping) else None) or "mlp"
    if block_class != "parallel" or mlp_class not in ("mlp", "fused_mlp"):
        raise UnsupportedError(
            f"a mixformer of {block_class!r} blocks with {mlp_class!r} is another model than Phi, "
            "which has 'parallel' and 'mlp'"
        )


def _dtype_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    name = raw.get("dtype") or raw.get("torch_dtype")
    return {} if name in (None, "auto") else {"dtype": str(name).removeprefix("torch.")}


def _quantization_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    told = raw.get(QUANTIZATION)
    if told is None:
        return {}
    sound = isinstance(told, Mapping) and isinstance(told.get("format"), str)
    expect(sound, QUANTIZATION, told, "an object with format and version")
    if told.get("version") != _QUANTIZATION_VERSION:
        raise UnsupportedError(
            f"integer weights of version {told.get('version')!r} cannot be read, only those of "
            f"version {_QUANTIZATION_VERSION}; quantize the float checkpoint again"
        )
    return {"quantization": told["format"]}


def _write_quantization(format: str | None, dialect: Dialect) -> dict[str, Any]:
    if format is None:
        return {}
    if dialect != "phi5":
        raise UnsupportedError(f"the dialect {dialect!r} has no word for {format} weights")
    return {QUANTIZATION: {"format": format, "version": _QUANTIZATION_VERSION}}


def _end_token_of(raw: Mapping[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Some fine-tunes list several end tokens: the first counts, `extra` keeps the list."""
    tokens = raw.get("eos_token_id")
    if not isinstance(tokens, list):
        return {}
    expect(len(tokens) > 0, "eos_token_id", tokens, "a token id")
    extra["eos_token_id"] = tokens
    return {"eos_token_id": tokens[0]}


def _fill_gpt(
    raw: Mapping[str, Any], values: Mapping[str, Any], extra: dict[str, Any]
) -> dict[str, Any]:
    """What the original code computes from other keys: inner size, kv heads, padded vocabulary."""
    scaled = raw.get("rope_scaling") or raw.get("rope_parameters")
    if scaled or raw.get("rope_theta") not in (None, 10000.0):
        raise UnsupportedError(f"{raw['model_type']!r} has no rope scaling; its base is 10000")
    multiple = check_integer(
        "pad_vocab_size_multiple", extra.setdefault("pad_vocab_size_multiple", 64)
    )
    rows = check_integer("vocab_size", values["vocab_size"])
    hidden = check_integer("n_embd", values["hidden_size"])
    heads = check_integer("n_head", values["num_attention_heads"])
    return {
        "vocab_size": -(-rows // multiple) * multiple,
        "intermediate_size": values.get("intermediate_size", 4 * hidden),
        "num_key_value_heads": values.get("num_key_value_heads", heads),
        "rotary_dim": min(check_integer("rotary_dim", values["rotary_dim"]), hidden // heads),
    }


def _fill_phi(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Key-value heads, and rotary settings from either of transformers' spellings."""
    hidden = check_integer("hidden_size", values["hidden_size"])
    heads = check_integer("num_attention_heads", values["num_attention_heads"])
    if raw.get("head_dim") not in (None, hidden // heads):
        raise UnsupportedError(
            f"head_dim {raw['head_dim']} is not hidden_size / heads = {hidden // heads}"
        )
    rope = _rope_of(raw)
    merged = {"partial_rotary_factor": 0.5, "rope_theta": 10000.0}
    merged |= {key: raw[key] for key in merged if raw.get(key) is not None}
    merged |= {key: rope.pop(key) for key in tuple(merged) if key in rope}
    share = check_number("partial_rotary_factor", merged["partial_rotary_factor"])
    expect(share <= 1, "partial_rotary_factor", share, "at most 1")
    return {
        "num_key_value_heads": values.get("num_key_value_heads", heads),
        "rotary_dim": int(hidden // heads * share),
        "rope_theta": merged["rope_theta"],
        "rope_scaling": _read_scaling(rope, values["max_position_embeddings"]),
    }


def _rope_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    scaling, parameters = raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}
    for name, value in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        expect(isinstance(value, Mapping), name, value, "an object or null")
    if scaling and parameters:
        raise ConfigError("the config has rope_scaling and rope_parameters; keep one of the two")
    return {key: value for key, value in (scaling or parameters).items() if value is not None}


def _read_scaling(rope: dict[str, Any], context: object) -> dict[str, Any] | None:
    """Rope scaling under one spelling; None for the plain kind."""
    legacy = rope.pop("type", "default")
    kind = rope.pop("rope_type", legacy)
    if kind == "default":
        return None
    if not isinstance(kind, str) or kind not in ROPE_FIELDS:
        raise no_rope_type(kind)
    required, optional = ROPE_FIELDS[kind]
    for name in rope:
        if name not in required + optional:
            raise ConfigError(f"rope scaling of type {kind!r} takes no {name!r}")
    if "original_max_position_embeddings" in required:
        rope.setdefault("original_max_position_embeddings", context)
    for name in required:
        if name not in rope:
            raise ConfigError(f"rope scaling of type {kind!r} needs {name!r}")
    return {"rope_type": kind, **rope}


def _write_rope(values: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    head_dim = values["hidden_size"] // values["num_attention_heads"]
    share = {"partial_rotary_factor": _share(values["rotary_dim"], head_dim)}
    theta = {"rope_theta": values["rope_theta"]}
    scaling = values["rope_scaling"] or {}
    scaling = {key: value for key, value in scaling.items() if value is not None}
    if dialect == "phi5":
        return {"rope_parameters": {"rope_type": "default", **theta, **share, **scaling}}
    if scaling:
        scaling["type"] = scaling["rope_type"]  # what versions before 4.43 read
    return {**theta, **share, "rope_scaling": scaling or None}


def _share(part: int, whole: int) -> float:
    """The float that `int(whole * share)` turns back into `part`."""
    share = part / whole
    return share if int(whole * share) == part else math.nextafter(share, 1.0)
