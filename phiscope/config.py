"""The shape of a Phi model, read from any of the four config dialects its checkpoints use.

Names are those of transformers. A config is checked where it is made, before anything is
allocated from it; keys it does not know are kept in `extra` and never acted on.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from phiscope.dialects import ROPE_FIELDS, Dialect, no_rope_type, read_dialect, write_dialect
from phiscope.errors import CheckpointError, ConfigError, UnsupportedError
from phiscope.strict import check_integer, check_number, check_positive, expect, read_json_object

RopeType = Literal["linear", "dynamic", "yarn", "llama3"]

DTYPES = ("float16", "bfloat16", "float32", "float64")
QUANTIZATIONS = ("int8", "int4")
HIDDEN_ACTS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu", "relu", "silu")
MAX_CONFIG_BYTES = 2**20
MAX_LAYERS = 1024
MAX_PARAMETERS = 10**12
MAX_POSITIONS = 2**24

_SIZES = {  # field: its largest sound value
    **{"vocab_size": 2**31 - 1, "hidden_size": 2**31 - 1, "intermediate_size": 2**31 - 1},
    **{"num_hidden_layers": MAX_LAYERS, "max_position_embeddings": MAX_POSITIONS},
    **{"num_attention_heads": 2**16, "num_key_value_heads": 2**16, "rotary_dim": 2**16},
}


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context, as transformers names it.

    `dynamic` changes frequencies only beyond `max_position_embeddings`, which this package never
    exceeds, so there it equals no scaling at all.
    """

    rope_type: RopeType
    factor: float
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_FIELDS:
            raise no_rope_type(self.rope_type)
        required, optional = ROPE_FIELDS[self.rope_type]
        for name in (item.name for item in fields(self) if item.name != "rope_type"):
            if getattr(self, name) is None:
                expect(name not in required, name, None, f"given for {self.rope_type!r}")
            elif name not in required + optional:
                raise ConfigError(f"rope scaling of type {self.rope_type!r} takes no {name!r}")
            else:
                self._check(name)
        expect(self.factor >= 1.0, "factor", self.factor, "at least 1")
        low, high = self.low_freq_factor or 0.0, self.high_freq_factor or 1.0
        expect(low < high, "high_freq_factor", high, f"above low_freq_factor {low}")
        slow, fast = self.beta_slow or 1.0, self.beta_fast or 32.0
        expect(slow <= fast, "beta_fast", fast, f"at least beta_slow {slow}")

    def _check(self, name: str) -> None:
        value = getattr(self, name)
        if name == "truncate":
            expect(isinstance(value, bool), name, value, "true or false")
        elif name == "original_max_position_embeddings":
            check_integer(name, value, high=MAX_POSITIONS)
        else:
            object.__setattr__(self, name, check_positive(name, value))


@dataclass(frozen=True, kw_only=True)
class PhiConfig:
    """The shape of a Phi model; the defaults are phi-2's. Raises `ConfigError` when unsound."""

    vocab_size: int = 51200
    hidden_size: int = 2560
    intermediate_size: int = 10240
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    max_position_embeddings: int = 2048
    rotary_dim: int = 32
    """The leading dimensions of each head that are rotated."""
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu_new"
    qk_layernorm: bool = False
    embd_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    bos_token_id: int = 50256
    eos_token_id: int = 50256
    dtype: str | None = None
    """The dtype the weights were stored in; None where the config does not say."""
    quantization: str | None = None
    """The integers that linear layers' weights were stored as; None: they are floats."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Keys of the config file that mean nothing here: data, never acted on."""

    def __post_init__(self) -> None:
        for name, limit in _SIZES.items():
            check_integer(name, getattr(self, name), high=limit)
        for name in ("bos_token_id", "eos_token_id"):
            check_integer(name, getattr(self, name), low=0)
        self._check_numbers()
        self._check_choices()
        self._check_heads()
        if self.num_parameters > MAX_PARAMETERS:
            raise ConfigError(f"{self.num_parameters:,} parameters exceed {MAX_PARAMETERS:,}")

    def _check_numbers(self) -> None:
        """Check them, and store an int given for a float as the float."""
        for name in ("rope_theta", "layer_norm_eps"):
            object.__setattr__(self, name, check_positive(name, getattr(self, name)))
        for name in ("embd_pdrop", "resid_pdrop", "attention_dropout"):
            object.__setattr__(self, name, check_number(name, getattr(self, name), high=1.0))
        spread = check_number("initializer_range", self.initializer_range)
        object.__setattr__(self, "initializer_range", spread)

    def _check_choices(self) -> None:
        if self.hidden_act not in HIDDEN_ACTS:
            raise UnsupportedError(f"no hidden_act {self.hidden_act!r}; choose from {HIDDEN_ACTS}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UnsupportedError(f"no dtype {self.dtype!r}; choose from {DTYPES}")
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise UnsupportedError(
                f"no quantization {self.quantization!r}; choose from {QUANTIZATIONS}"
            )
        expect(isinstance(self.qk_layernorm, bool), "qk_layernorm", self.qk_layernorm, "a bool")
        scaling = self.rope_scaling
        sound = scaling is None or isinstance(scaling, RopeScaling)
        expect(sound, "rope_scaling", scaling, "a RopeScaling or None")

    def _check_heads(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % heads:
            raise ConfigError(f"{heads} heads do not divide hidden_size {self.hidden_size}")
        if heads % kv_heads:
            raise ConfigError(f"num_key_value_heads {kv_heads} does not divide {heads} heads")
        sound = self.rotary_dim % 2 == 0 and self.rotary_dim <= self.head_dim
        wanted = f"even and at most head_dim {self.head_dim}"
        expect(sound, "rotary_dim", self.rotary_dim, wanted)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_parameters(self) -> int:
        """The exact number of weights, the head's and all biases included."""
        hidden, inner = self.hidden_size, self.intermediate_size
        qkv = (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
        attention = qkv * (hidden + 1) + hidden * (hidden + 1)
        attention += 4 * self.head_dim if self.qk_layernorm else 0
        block = 2 * hidden + attention + 2 * hidden * inner + inner + hidden
        head = 2 * hidden + self.vocab_size * (hidden + 1)
        return self.vocab_size * hidden + self.num_hidden_layers * block + head

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "PhiConfig":
        """Read a config of any dialect.

        Raises `UnsupportedError` for other families, mixtures of experts and quantized weights.
        """
        values = read_dialect(raw)
        if values.get("rope_scaling") is not None:
            values["rope_scaling"] = RopeScaling(**values["rope_scaling"])
        return cls(**values)

    def to_dict(self, dialect: Dialect = "phi5") -> dict[str, Any]:
        """The config as a `config.json` of that dialect; `UnsupportedError` if it cannot say it."""
        return write_dialect(asdict(self), dialect)


def read_config(folder: Path) -> PhiConfig:
    """The config of a checkpoint folder, from its `config.json`."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"no config.json in {folder}; is this a checkpoint folder?")
    return PhiConfig.from_dict(read_json_object(path, MAX_CONFIG_BYTES, ConfigError))


_PHI_1 = PhiConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, dtype="float16")
PRESETS: Mapping[str, PhiConfig] = MappingProxyType(
    {"phi-1": _PHI_1, "phi-1_5": _PHI_1, "phi-2": PhiConfig(resid_pdrop=0.1, dtype="float16")}
)
