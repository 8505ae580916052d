import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiscope.config import MAX_CONFIG_BYTES, PRESETS, PhiConfig, RopeScaling, read_config
from phiscope.dialects import WRITERS
from phiscope.errors import CheckpointError, ConfigError, UnsupportedError

SMALL = PhiConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    rotary_dim=8,
)
MIXFORMER = {  # as the first release of phi-2 has it, with the oldest keys beside
    "model_type": "mixformer-sequential",
    "architectures": ["MixFormerSequentialForCausalLM"],
    "architecture": {
        "block_cls": "parallel",
        "mixer": {},
        "mlp": {"mlp_cls": "mlp"},
    },
    "embd_layer": "default",
    "phyagi_version": "0.0.4.dev",
    "blocks": None,
    "input_emb_layer": "embedding",
    "activation_function": "gelu_new",
    "embd_pdrop": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "n_embd": 2560,
    "n_head": 32,
    "n_head_kv": None,
    "n_inner": None,
    "n_layer": 32,
    "n_positions": 2048,
    "resid_pdrop": 0.1,
    "rotary_dim": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 51200,
}
PHI_MSFT = {key: MIXFORMER[key] for key in MIXFORMER if not key.startswith(("arch", "embd_layer"))}
PHI_MSFT |= {
    "model_type": "phi-msft",
    "flash_attn": False,
    "flash_rotary": False,
    "fused_dense": False,
    "attn_pdrop": 0.0,
    "img_processor": None,
    "pad_vocab_size_multiple": 64,
    "auto_map": {"AutoConfig": "configuration_phi.PhiConfig"},
}
PHI_4 = {
    "model_type": "phi",
    "architectures": ["PhiForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 50256,
    "embd_pdrop": 0.0,
    "eos_token_id": 50256,
    "hidden_act": "gelu_new",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 10240,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.4,
    "qk_layernorm": False,
    "resid_pdrop": 0.1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 51200,
}
PHI_5 = {key: PHI_4[key] for key in PHI_4 if not key.startswith(("rope", "partial", "torch"))} | {
    "dtype": "float16",
    "rope_parameters": {
        "partial_rotary_factor": 0.4,
        "rope_theta": 10000.0,
        "rope_type": "default",
    },
}
PUBLISHED = {"mixformer": MIXFORMER, "phi-msft": PHI_MSFT, "phi4": PHI_4, "phi5": PHI_5}
SCALINGS = (
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024},
    {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 1024,
        "truncate": False,
        "beta_fast": 16.0,
    },
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
)


def read(raw):
    """The config without what it keeps as mere data."""
    return dataclasses.replace(PhiConfig.from_dict(raw), extra={})


@pytest.mark.parametrize(
    ("preset", "count"),
    [("phi-1", 1_418_270_720), ("phi-1_5", 1_418_270_720), ("phi-2", 2_779_683_840)],
)
def test_presets_have_the_exact_number_of_parameters(preset, count):
    assert PRESETS[preset].num_parameters == count


@pytest.mark.parametrize("dialect", PUBLISHED)
def test_published_phi_2_in_each_dialect_is_the_preset(dialect):
    assert read(PUBLISHED[dialect]) == PRESETS["phi-2"]


@pytest.mark.parametrize("dialect", WRITERS)
@pytest.mark.parametrize("config", [*PRESETS.values(), SMALL], ids=[*PRESETS, "small"])
def test_config_written_in_a_dialect_reads_back_equal(config, dialect):
    assert read(config.to_dict(dialect)) == config
    assert json.loads(json.dumps(config.to_dict(dialect))) == config.to_dict(dialect)


@pytest.mark.parametrize("dialect", WRITERS)
def test_a_vocabulary_of_any_size_survives_each_dialect(dialect):
    config = dataclasses.replace(SMALL, vocab_size=50295)
    assert read(config.to_dict(dialect)).vocab_size == 50295


@pytest.mark.parametrize("dialect", ["phi4", "phi5"])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: "-".join(map(str, scaling)))
def test_rope_scaling_survives_both_spellings_of_transformers(scaling, dialect):
    config = dataclasses.replace(SMALL, rope_scaling=RopeScaling(**scaling), rope_theta=5e4)
    assert read(config.to_dict(dialect)) == config
    assert config.rope_scaling.truncate == scaling.get("truncate")


@given(head_dim=st.integers(2, 512), data=st.data())
def test_rotary_dim_survives_being_written_as_a_fraction(head_dim, data):
    rotary_dim = 2 * data.draw(st.integers(1, head_dim // 2))
    config = dataclasses.replace(
        SMALL,
        hidden_size=head_dim,
        num_attention_heads=1,
        num_key_value_heads=1,
        rotary_dim=rotary_dim,
    )
    written = config.to_dict("phi5")["rope_parameters"]["partial_rotary_factor"]
    assert 0 < written <= 1
    assert int(head_dim * written) == rotary_dim  # as transformers computes it
    assert read(config.to_dict("phi5")) == config


def test_nested_rope_settings_win_over_outer_ones_as_in_transformers():
    raw = {**PHI_5, "rope_theta": 5.0, "partial_rotary_factor": 1.0}
    assert read(raw) == PRESETS["phi-2"]


def test_yarn_takes_the_context_for_an_absent_original_one():
    raw = {**PHI_4, "rope_scaling": {"type": "yarn", "factor": 2.0}}
    assert read(raw).rope_scaling.original_max_position_embeddings == 2048


@pytest.mark.parametrize(
    ("scaling", "error", "message"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, UnsupportedError, "no rope .* 'longrope'"),
        ({"rope_type": ["yarn"]}, UnsupportedError, "no rope scaling of type"),
        ({"type": "linear"}, ConfigError, "needs 'factor'"),
        ({"type": "linear", "factor": 0.5}, ConfigError, "factor must be at least 1"),
        ({"type": "linear", "factor": float("nan")}, ConfigError, "factor must be a finite"),
        ({"type": "linear", "factor": 2.0, "beta_fast": 3.0}, ConfigError, "takes no 'beta_fast'"),
        ({"type": "llama3", "factor": 2.0}, ConfigError, "needs 'low_freq_factor'"),
        (
            {"type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
            ConfigError,
            "high_freq_factor must be above",
        ),
        ({"type": "yarn", "factor": 2.0, "beta_fast": 0.5}, ConfigError, "at least beta_slow"),
        ({"type": "yarn", "factor": 2.0, "truncate": 1}, ConfigError, "truncate must be true"),
        ("linear", ConfigError, "rope_scaling must be an object"),
    ],
)
def test_unsound_rope_scaling_is_refused(scaling, error, message):
    with pytest.raises(error, match=message):
        PhiConfig.from_dict({**PHI_4, "rope_scaling": scaling})


def test_rope_scaling_given_in_two_spellings_is_refused():
    raw = {**PHI_5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    with pytest.raises(ConfigError, match="rope_scaling and rope_parameters"):
        PhiConfig.from_dict(raw)


@pytest.mark.parametrize("dialect", ["mixformer", "phi-msft"])
@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 5e4},
        {"qk_layernorm": True},
        {"rope_scaling": RopeScaling(rope_type="linear", factor=2.0)},
    ],
)
def test_what_a_dialect_cannot_express_is_not_written_in_it(dialect, change):
    with pytest.raises(UnsupportedError, match="cannot express"):
        dataclasses.replace(SMALL, **change).to_dict(dialect)


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {"rope_theta": 5e4},
    ],
)
def test_microsofts_dialects_have_no_rope_settings_to_read(keys):
    with pytest.raises(UnsupportedError, match="no rope scaling"):
        PhiConfig.from_dict({**PHI_MSFT, **keys})
    assert read({**PHI_MSFT, **dict.fromkeys(keys)}) == PRESETS["phi-2"]


def test_absent_keys_take_the_defaults_of_their_dialect():
    assert read({"model_type": "phi"}) == dataclasses.replace(PRESETS["phi-1"], dtype=None)
    old = read({"model_type": "phi-msft"})
    sizes = (old.vocab_size, old.hidden_size, old.num_hidden_layers, old.num_attention_heads)
    assert sizes == (50304, 1024, 20, 16)
    assert (old.intermediate_size, old.num_key_value_heads, old.rotary_dim) == (4096, 16, 32)


def test_microsofts_dialects_pad_the_vocabulary():
    assert read({**PHI_MSFT, "vocab_size": 50295}).vocab_size == 50304
    assert read({**PHI_MSFT, "vocab_size": 50295, "pad_vocab_size_multiple": 1}).vocab_size == 50295


def test_grouped_heads_are_read_from_every_dialect():
    assert read({**PHI_MSFT, "n_head_kv": 8}).num_key_value_heads == 8
    assert read({**PHI_4, "num_key_value_heads": 8}).num_key_value_heads == 8


def test_several_end_tokens_give_the_first_and_keep_the_list():
    config = PhiConfig.from_dict({**PHI_5, "eos_token_id": [50295, 50256]})
    assert config.eos_token_id == 50295
    assert config.extra["eos_token_id"] == [50295, 50256]


def test_absent_end_token_is_the_tokenizers():
    assert read({**PHI_5, "eos_token_id": None}).eos_token_id == 50256


def test_unknown_keys_are_kept_as_data():
    config = PhiConfig.from_dict({**PHI_MSFT, "mystery": {"a": [1]}})
    assert config.extra["mystery"] == {"a": [1]}
    assert config.extra["auto_map"] == PHI_MSFT["auto_map"]
    assert "n_embd" not in config.extra


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({**PHI_5, "model_type": "phi3"}, "'phi3' is another family"),
        ({**PHI_5, "model_type": "phimoe"}, "'phimoe' is another family"),
        ({**PHI_5, "model_type": "llama"}, "'llama' is another family"),
        ({**PHI_5, "model_type": ["phi"]}, "is another family"),
        ({**PHI_MSFT, "num_local_experts": 4, "num_experts_per_tok": 2}, "phixtral"),
        ({**PHI_5, "quantization_config": {"quant_method": "gptq"}}, "quantized by gptq"),
        ({**PHI_5, "quantization_config": {}}, "quantized by an unnamed method"),
        ({**PHI_5, "tie_word_embeddings": True}, "tie_word_embeddings"),
        ({**PHI_5, "head_dim": 64}, "head_dim 64"),
        ({**PHI_5, "hidden_act": "swiglu"}, "no hidden_act 'swiglu'"),
        ({**PHI_5, "dtype": "float8_e4m3fn"}, "no dtype 'float8_e4m3fn'"),
        ({**MIXFORMER, "architecture": {"block_cls": "sequential"}}, "'sequential' blocks"),
        ({**MIXFORMER, "architecture": {"mlp": {"mlp_cls": "glu"}}}, "with 'glu'"),
    ],
)
def test_another_model_is_refused_by_name(raw, message):
    with pytest.raises(UnsupportedError, match=message):
        PhiConfig.from_dict(raw)


def test_config_without_a_model_type_is_refused():
    with pytest.raises(ConfigError, match="no model_type"):
        PhiConfig.from_dict({"hidden_size": 64})


def test_integers_given_for_floats_become_floats():
    assert repr(dataclasses.replace(SMALL, rope_theta=10000).rope_theta) == "10000.0"


def test_config_can_be_a_key():
    assert {SMALL: 1}[dataclasses.replace(SMALL)] == 1


def test_transformers_reads_what_is_written(recwarn):
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(SMALL, bos_token_id=0, eos_token_id=1, dtype="bfloat16")
    peer = transformers.PhiConfig(**config.to_dict("phi5"))
    assert read(peer.to_dict()) == config
    assert read(transformers.PhiConfig(**config.to_dict("phi4")).to_dict()) == config


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"model_type": "phi", "layer_norm_eps": NaN}', "NaN is not a JSON number"),
        (b'{"model_type": "phi", "rope_theta": Infinity}', "Infinity is not a JSON number"),
        (b'{"model_type": "phi", "model_type": "phi3"}', "'model_type' is there twice"),
        (b'["phi"]', "must hold a JSON object"),
        (b'{"model_type": "phi"', "not sound JSON"),
        (b"", "not sound JSON"),
        (b'{"model_type": "\xff"}', "not sound JSON"),
        (b'{"model_type": ' + b"[" * 100_000, "not sound JSON"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "not sound JSON"),
        (b'{"model_type": "phi"}' + b" " * MAX_CONFIG_BYTES, "is larger than"),
    ],
)
def test_config_file_that_is_not_sound_json_is_refused(tmp_path, data, message):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path)


def test_config_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(PHI_5).encode())
    assert read_config(tmp_path).hidden_size == 2560


def test_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json in"):
        read_config(tmp_path)
