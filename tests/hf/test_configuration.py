import copy
import json
import pickle

import pytest
import transformers
from transformers import AutoConfig

import phiscope
from phiscope.errors import ConfigError, UnsupportedError
from phiscope.hf import MixformerConfig, PhiConfig, PhiForCausalLM, PhiMsftConfig
from phiscope.hf.configuration import read_shape

MSFT = {
    "model_type": "phi-msft",
    "vocab_size": 128,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": None,
    "n_positions": 512,
    "rotary_dim": 8,
    "resid_pdrop": 0.1,
    "layer_norm_epsilon": 1e-6,
    "activation_function": "gelu_new",
    "torch_dtype": "float16",
    "flash_attn": False,
    "auto_map": {"AutoConfig": "configuration_phi.PhiConfig"},
}


@pytest.mark.parametrize("reader", [PhiMsftConfig, MixformerConfig])
def test_microsofts_dialects_are_read_into_transformers_names(reader):
    config = reader.from_dict({**MSFT, "model_type": reader.model_type})
    assert type(config) is PhiConfig
    assert config.model_type == "phi"
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (64, 256, 3)
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    assert config.layer_norm_eps == 1e-6
    assert config.eos_token_id == 50256


def test_microsofts_names_are_aliases():
    values = {key: MSFT[key] for key in MSFT if key != "model_type"}
    config = PhiMsftConfig(**values)
    assert (config.n_embd, config.n_layer, config.n_head, config.rotary_dim) == (64, 3, 4, 8)
    config.n_layer = 2
    assert config.num_hidden_layers == 2
    assert AutoConfig.for_model("phi-msft", **values | {"n_embd": 32}).hidden_size == 32


def test_code_named_by_a_config_is_forgotten():
    assert not hasattr(PhiConfig.from_dict(MSFT), "auto_map")
    assert not hasattr(PhiConfig.from_dict({"model_type": "phi", "auto_map": {}}), "auto_map")
    assert not hasattr(PhiConfig(auto_map={"AutoConfig": "x.Y"}), "auto_map")


def test_labels_are_kept_from_microsofts_dialects():
    config = PhiConfig.from_dict({**MSFT, "id2label": {"0": "no", "1": "yes", "2": "maybe"}})
    assert config.num_labels == 3
    assert config.id2label[2] == "maybe"


def test_config_outlives_copying_pickling_and_saving(tmp_path):
    config = PhiConfig.from_dict({**MSFT, "hidden_states_format": "last_block"})
    config.save_pretrained(tmp_path)
    copies = [copy.deepcopy(config), pickle.loads(pickle.dumps(config))]
    copies.append(PhiConfig.from_pretrained(tmp_path))
    assert all(other.to_dict() == config.to_dict() for other in copies)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 64


def test_saved_config_is_plain_transformers_too(tmp_path):
    PhiConfig.from_dict(MSFT).save_pretrained(tmp_path)
    plain = AutoConfig.from_pretrained(tmp_path)
    assert type(plain) is transformers.PhiConfig
    assert plain.hidden_size == 64


def test_preset_is_the_same_model_in_both_worlds():
    raw = phiscope.PRESETS["phi-2"].to_dict("phi-msft")
    shape = read_shape(PhiConfig.from_dict(raw))
    assert shape.num_parameters == 2_779_683_840
    assert shape.rotary_dim == 32


def test_other_families_are_refused_by_name():
    with pytest.raises(UnsupportedError, match="phi3"):
        PhiConfig.from_dict({"model_type": "phi3"})
    with pytest.raises(UnsupportedError, match="mixture of experts"):
        PhiMsftConfig.from_dict({**MSFT, "num_local_experts": 4})


def test_unsound_configs_are_refused_before_anything_is_allocated():
    with pytest.raises(ConfigError, match="heads do not divide"):
        PhiMsftConfig.from_dict({**MSFT, "n_head": 5})
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        PhiForCausalLM(PhiConfig(num_hidden_layers=10**9))


def test_unknown_format_of_hidden_states_is_refused():
    with pytest.raises(ValueError, match="hidden_states_format is one of"):
        PhiConfig(hidden_states_format="last")
