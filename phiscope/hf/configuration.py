"""The config of our transformers classes: transformers' own for Phi, read from any dialect.

Whatever a folder's `config.json` speaks, the config in memory speaks transformers' language and
says `model_type: "phi"`; Microsoft's names (`n_embd` ...) are read and set as aliases.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import transformers

from phiscope.config import PhiConfig as Shape

HiddenStatesFormat = Literal["transformers", "last_block"]

_KEPT = (  # of a config in Microsoft's dialects, what transformers acts on
    *("id2label", "label2id", "num_labels", "problem_type", "pad_token_id", "use_cache"),
    *("classifier_dropout", "hidden_states_format", "output_hidden_states", "output_attentions"),
    *("return_dict", "name_or_path", "attn_implementation"),
)
_NEVER = ("auto_map",)
"""Keys that name code of the checkpoint's, which is not executed."""


class PhiConfig(transformers.PhiConfig):
    """transformers' `PhiConfig`, and the format of the hidden states.

    `hidden_states_format="last_block"` makes `hidden_states` of every output one tensor, (batch,
    tokens, hidden): the stream after the last block and before the final norm.
    """

    attribute_map: ClassVar[dict[str, str]] = {
        "n_embd": "hidden_size",
        "n_inner": "intermediate_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_head_kv": "num_key_value_heads",
        "n_positions": "max_position_embeddings",
        "layer_norm_epsilon": "layer_norm_eps",
        "activation_function": "hidden_act",
        "attn_pdrop": "attention_dropout",
    }

    hidden_states_format: str = "transformers"

    def __post_init__(self, **kwargs: Any) -> None:
        for key in _NEVER:
            kwargs.pop(key, None)
        super().__post_init__(**kwargs)
        formats = HiddenStatesFormat.__args__  # type: ignore[attr-defined]
        if self.hidden_states_format not in formats:
            raise ValueError(
                f"hidden_states_format is one of {formats}, got {self.hidden_states_format!r}"
            )

    @property
    def rotary_dim(self) -> int:
        """The leading dimensions of each head that are rotated."""
        return read_shape(self).rotary_dim

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a `config.json` of any dialect says, and the arguments that did not find it."""
        raw, rest = super().get_config_dict(*args, **kwargs)
        return _as_transformers(raw), rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config that a dict of any dialect says.

        Raises `UnsupportedError` for another family and `ConfigError` for what cannot be right.
        """
        return super().from_dict(_as_transformers(config_dict), **kwargs)


class PhiMsftConfig(PhiConfig):
    """Reads configs of `model_type: "phi-msft"`; what it makes is a `PhiConfig`."""

    model_type = "phi-msft"

    def __new__(cls, **values: Any) -> Any:
        return PhiConfig.from_dict({**values, "model_type": cls.model_type})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The `PhiConfig` that a dict of this dialect says."""
        return PhiConfig.from_dict({**config_dict, "model_type": cls.model_type}, **kwargs)


class MixformerConfig(PhiMsftConfig):
    """Reads configs of `model_type: "mixformer-sequential"`; what it makes is a `PhiConfig`."""

    model_type = "mixformer-sequential"


def read_shape(config: PhiConfig) -> Shape:
    """The same model as the packed forward knows it, checked."""
    values = config.to_dict()
    ends = {
        key: end[0] if isinstance(end, list) and end else end
        for key, end in values.items()
        if key in ("bos_token_id", "eos_token_id")
    }
    theirs = ("dtype", "tie_word_embeddings", "quantization_config")  # transformers acts on them
    set_aside = (*ends, *theirs)
    known = {key: value for key, value in values.items() if key not in set_aside}
    known |= {key: end for key, end in ends.items() if isinstance(end, int) and end >= 0}
    return Shape.from_dict({**known, "model_type": "phi"})


def _as_transformers(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A dict in transformers' names, without what names code."""
    if raw.get("model_type", "phi") == "phi":
        return {key: value for key, value in raw.items() if key not in _NEVER}
    kept = {key: raw[key] for key in _KEPT if key in raw}
    return Shape.from_dict(raw).to_dict("phi5") | kept
