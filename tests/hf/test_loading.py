import json
import warnings

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.testing_utils import CaptureLogger

import phiscope
import phiscope.hf
from phiscope.checkpoint.hub import resolve
from phiscope.errors import CheckpointError, HubError, UnsupportedError
from phiscope.hf import PhiConfig, PhiForCausalLM, PhiForSequenceClassification, PhiModel

LAYOUTS = ("A", "B", "C", "D")
CARD_FLAGS = {"flash_attn": True, "flash_rotary": True, "fused_dense": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The embedded model `nano` in every layout."""
    root = tmp_path_factory.mktemp("layouts")
    for layout in LAYOUTS:
        phiscope.convert(resolve("nano"), root / layout, layout=layout, dtype=torch.float32)
    return {layout: root / layout for layout in LAYOUTS}


@pytest.fixture(scope="module")
def oracle(folders):
    return transformers.PhiForCausalLM.from_pretrained(folders["D"]).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))


def add_remote_code(folder, target):
    """A copy of a folder with code of its own, which tells when it is executed."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    canary = target / "executed"
    code = f"open({str(canary)!r}, 'w').close()\nraise SystemExit('remote code was executed')\n"
    for name in ("configuration_phi.py", "modeling_phi.py", "tokenization_phi.py"):
        (target / name).write_text(code)
    config = json.loads((target / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_phi.PhiConfig",
        "AutoModel": "modeling_phi.PhiModel",
        "AutoModelForCausalLM": "modeling_phi.PhiForCausalLM",
    }
    (target / "config.json").write_text(json.dumps(config))
    return target, canary


def name_tokenizer_code(target):
    settings = json.loads((target / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_phi.A", "tokenization_phi.B"]}
    (target / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_transformers_logits(folders, oracle, ids, layout):
    model = PhiForCausalLM.from_pretrained(folders[layout])
    torch.testing.assert_close(model(ids).logits, oracle(ids).logits, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("layout", ["A", "B"])
def test_auto_classes_open_microsofts_layouts(folders, oracle, ids, layout):
    model = AutoModelForCausalLM.from_pretrained(folders[layout])
    assert type(model) is PhiForCausalLM
    torch.testing.assert_close(model(ids).logits, oracle(ids).logits, atol=1e-4, rtol=1e-5)
    body = AutoModel.from_pretrained(folders[layout])
    assert type(body) is PhiModel
    expected = oracle.model(ids).last_hidden_state
    torch.testing.assert_close(body(ids).last_hidden_state, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("layout", ["A", "B"])
@pytest.mark.parametrize("trusted", [True, False])
def test_remote_code_is_never_executed(folders, oracle, ids, tmp_path, layout, trusted):
    folder, canary = add_remote_code(folders[layout], tmp_path / "remote")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trusted)
    AutoModel.from_pretrained(folder, trust_remote_code=trusted)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
    assert AutoConfig.from_pretrained(folder, trust_remote_code=trusted).hidden_size
    assert type(model) is PhiForCausalLM
    assert not canary.exists()
    assert tokenizer("def f():\n    pass")["input_ids"]
    torch.testing.assert_close(model(ids).logits, oracle(ids).logits, atol=1e-4, rtol=1e-5)


def test_tokenizers_code_is_not_executed_unless_trusted(folders, tmp_path):
    folder, canary = add_remote_code(folders["B"], tmp_path / "remote")
    name_tokenizer_code(folder)
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=False)("a b")["input_ids"]
    assert not canary.exists()


def test_remote_code_is_not_executed_for_classes_by_name(folders, tmp_path):
    folder, canary = add_remote_code(folders["D"], tmp_path / "remote")
    PhiForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert not canary.exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cards_arguments_are_taken_and_what_is_not_honoured_is_said(folders, layout):
    with pytest.warns(UserWarning, match="flash|fused") as said:
        model = PhiForCausalLM.from_pretrained(
            folders[layout],
            torch_dtype="auto",
            device_map="cpu",
            low_cpu_mem_usage=True,
            trust_remote_code=True,
            **CARD_FLAGS,
        )
    words = " ".join(str(warning.message) for warning in said)
    assert all(name in words for name in CARD_FLAGS)
    assert model.dtype == torch.float32


def test_flag_that_is_no_bool_is_refused(folders):
    with pytest.raises(TypeError, match="flash_attn is True or False"):
        PhiForCausalLM.from_pretrained(folders["B"], flash_attn="yes")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dtype_is_the_stored_one_or_the_asked_one(folders, layout):
    assert PhiForCausalLM.from_pretrained(folders[layout]).dtype == torch.float32
    narrow = PhiForCausalLM.from_pretrained(folders[layout], dtype=torch.bfloat16)
    assert {x.dtype for x in narrow.parameters()} == {torch.bfloat16}
    old = PhiForCausalLM.from_pretrained(folders[layout], torch_dtype=torch.bfloat16)
    assert old.dtype == torch.bfloat16


def test_float16_on_a_cpu_is_said_to_be_slow(folders):
    with pytest.warns(UserWarning, match="float16 on a CPU"):
        PhiForCausalLM.from_pretrained(folders["B"], dtype=torch.float16)


@pytest.mark.parametrize("layout", ["B", "D"])
@pytest.mark.parametrize("place", ["auto", "cpu", "disk"])
def test_device_map_spreads_every_layout(folders, oracle, ids, tmp_path, layout, place):
    parts = {"model.embed_tokens": "cpu", "model.final_layernorm": "cpu", "lm_head": "cpu"}
    device_map = place if place == "auto" else parts | {"model.layers": place}
    model = PhiForCausalLM.from_pretrained(
        folders[layout], device_map=device_map, offload_folder=tmp_path
    )
    assert next(model.model.layers.parameters()).is_meta == (place == "disk")
    torch.testing.assert_close(model(ids).logits, oracle(ids).logits, atol=1e-4, rtol=1e-5)


def test_class_by_name_says_nothing_against_microsofts_layout(folders):
    with CaptureLogger(transformers.logging.get_logger("transformers.configuration_utils")) as log:
        PhiForCausalLM.from_pretrained(folders["B"])
        PhiConfig.from_pretrained(folders["B"])
    assert log.out == ""


def test_sharded_pickles_open(folders, oracle, ids, tmp_path):
    state = {key: value.clone() for key, value in oracle.state_dict().items()}
    names = sorted(state)
    files = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: state[name] for name in names if files[name] == file}, tmp_path / file)
    index = {"metadata": {}, "weight_map": files}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_bytes((folders["D"] / "config.json").read_bytes())
    model = PhiForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(model(ids).logits, oracle(ids).logits, atol=1e-4, rtol=1e-5)


@pytest.fixture
def _offline(monkeypatch):
    """transformers looks for adapters on the hub, whatever `local_files_only` says."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("_offline")
def test_model_of_the_hub_is_read_from_the_cache_without_its_code(folders, oracle, ids, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = tmp_path / "models--someone--phi-2"
    (model / "snapshots").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs/main").write_text(commit)
    _, canary = add_remote_code(folders["B"], model / "snapshots" / commit)
    for load in (AutoModelForCausalLM.from_pretrained, PhiForCausalLM.from_pretrained):
        loaded = load("someone/phi-2", cache_dir=tmp_path, local_files_only=True)
        assert loaded.config._name_or_path == "someone/phi-2"
        torch.testing.assert_close(loaded(ids).logits, oracle(ids).logits, atol=1e-4, rtol=1e-5)
    assert not canary.exists()


@pytest.mark.usefixtures("_offline")
def test_model_that_is_nowhere_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        PhiForCausalLM.from_pretrained("someone/else", cache_dir=tmp_path, local_files_only=True)


def test_embedded_model_opens_by_its_name():
    model = PhiForCausalLM.from_pretrained("nano", dtype=torch.float32)
    assert model.config._name_or_path == "nano"


def test_generation_config_of_the_folder_is_kept(folders, tmp_path):
    for file in folders["B"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = {"max_new_tokens": 7, "bos_token_id": 0, "eos_token_id": 0}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.max_new_tokens == 7


def test_end_token_is_phis_where_no_file_names_one(folders, tmp_path):
    for file in folders["B"].iterdir():
        if file.name != "generation_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.endswith("_token_id")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.generation_config.eos_token_id == 50256


def test_fine_tune_with_fewer_rows_than_its_config_rounds_up_to_opens(tmp_path):
    config = phiscope.PhiConfig(
        vocab_size=295,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        rotary_dim=4,
        max_position_embeddings=64,
    )
    model = phiscope.PhiForCausalLM(config)
    model.init_weights(torch.Generator().manual_seed(0))
    phiscope.save_checkpoint(model, tmp_path / "B", layout="B")
    raw = json.loads((tmp_path / "B/config.json").read_text())
    raw |= {"vocab_size": 320, "pad_vocab_size_multiple": 64}
    (tmp_path / "B/config.json").write_text(json.dumps(raw))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "B")
    assert loaded.lm_head.out_features == loaded.config.vocab_size == 295


def test_missing_weights_are_named(folders, tmp_path):
    for file in folders["B"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_layer": config["n_layer"] + 1}))
    with pytest.raises(CheckpointError, match=r"no 'transformer\.h\.\d+\.ln\.weight'"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncated_weights_are_refused(folders, tmp_path, layout):
    for file in folders[layout].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        PhiForCausalLM.from_pretrained(tmp_path)


def test_mixture_of_experts_is_refused_by_name(folders, tmp_path):
    for file in folders["B"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_local_experts": 4}))
    with pytest.raises(UnsupportedError, match="mixture of experts"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_head_that_the_checkpoint_lacks_is_new_and_the_rest_is_loaded(folders, oracle, ids):
    model, info = PhiForSequenceClassification.from_pretrained(
        folders["B"], num_labels=3, output_loading_info=True
    )
    assert info["missing_keys"] == {"score.weight"}
    expected = oracle.model(ids).last_hidden_state
    torch.testing.assert_close(model.model(ids).last_hidden_state, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loading_says_nothing_of_weights_that_fit(folders, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, info = PhiForCausalLM.from_pretrained(folders[layout], output_loading_info=True)
    assert not any(info.values())


def test_settings_given_to_auto_reach_the_config(folders):
    model = AutoModelForCausalLM.from_pretrained(
        folders["B"], hidden_states_format="last_block", attn_implementation="eager"
    )
    assert isinstance(model.config, PhiConfig)
    assert model.config.hidden_states_format == "last_block"
    assert model.config._attn_implementation == "eager"


def test_argument_that_means_nothing_is_refused(folders):
    with pytest.raises(TypeError, match="flash_attention"):
        AutoModelForCausalLM.from_pretrained(folders["B"], flash_attention=True)
