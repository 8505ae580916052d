import json
import sys

import peft
import pytest
import torch
import transformers
from hf.peers import make_config

import phiscope
from phiscope.errors import UnsupportedError
from phiscope.hf import (
    PhiForCausalLM,
    PhiForSequenceClassification,
    PhiForTokenClassification,
    PhiModel,
)
from phiscope.hf.adapters import TARGETS, get_peft_model, translate_config, translate_targets
from phiscope.packing import pack_lengths

# PEFT asks transformers for what transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated and will be removed in v6")

FUSED = {"q_proj", "k_proj", "v_proj"}
NAMES = {  # of each layout, and what they are here
    ("Wqkv", "out_proj"): {*FUSED, "dense"},
    ("Wqkv", "out_proj", "fc1", "fc2"): set(TARGETS),
    ("mixer.Wqkv", "mlp.fc1"): {*FUSED, "mlp.fc1"},
    ("query_key_value", "dense"): {*FUSED, "dense"},
    ("self_attn.query_key_value",): FUSED,
    ("fc_in", "fc_out"): {"fc1", "fc2"},
    ("mlp.mlp.fc1",): {"fc1"},
    ("q_proj", "v_proj"): {"q_proj", "v_proj"},
    ("Wqkv", "q_proj"): FUSED,
    ("wte", "lm_head.linear"): {"embed_tokens", "lm_head"},
    ("layers.1.mlp.fc_in",): {"model.layers.0.mlp.fc1"},
    ("layers.2.mixer.out_proj",): {"model.layers.1.self_attn.dense"},
    ("transformer.h.1.mlp.fc1", "transformer.h.1.mixer.out_proj"): {
        "model.layers.1.mlp.fc1",
        "model.layers.1.self_attn.dense",
    },
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [20, 21, 22, 23, 24]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])


def make_model(model_class=PhiForCausalLM, **options):
    torch.manual_seed(0)
    return model_class(make_config(**{"num_hidden_layers": 2, **options})).eval()


def make_lora(*names, **values):
    return peft.LoraConfig(r=4, target_modules=list(names), **values)


def stir(model):
    """Give the adapters something to do: a new one adds nothing."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.no_grad()
def logits_of(model, **inputs):
    return model(IDS, attention_mask=MASK, **inputs).logits * MASK[..., None]


def adapted(model):
    """The names, within a block, of what is adapted."""
    layers = [name for name, layer in model.named_modules() if hasattr(layer, "lora_A")]
    return {name.rpartition(".")[2] for name in layers}


def test_targets_are_every_linear_layer_of_a_block():
    block = make_model().model.layers[0]
    names = [name for name, layer in block.named_modules() if isinstance(layer, torch.nn.Linear)]
    assert [name.rpartition(".")[2] for name in names] == list(TARGETS)


@pytest.mark.parametrize("names", NAMES, ids=", ".join)
def test_names_of_any_layout_are_translated(names):
    assert translate_targets(make_model(), names) == NAMES[names]


@pytest.mark.parametrize(
    ("model_class", "values", "prefix"),
    [
        (PhiModel, {}, ""),
        (PhiForSequenceClassification, {}, "model."),
        (PhiForTokenClassification, {}, "model."),
        (PhiForCausalLM, {"num_key_value_heads": 2, "qk_layernorm": True}, "model."),
    ],
)
def test_every_class_reads_names_of_any_layout(model_class, values, prefix):
    model = make_model(model_class, **values)
    assert translate_targets(model, ["Wqkv", "query_key_value", "fc_in"]) == {*FUSED, "fc1"}
    found = translate_targets(model, ["transformer.h.1.mixer.Wqkv"])
    assert found == {f"{prefix}layers.1.self_attn.{name}" for name in FUSED}


@pytest.mark.parametrize("wrong", ["o_proj", "c_attn", "Wqkvv", "transformer.h.9.mlp.fc1", "proj"])
def test_a_wrong_name_is_refused_with_the_right_ones(wrong):
    right = r"choose from q_proj, k_proj, v_proj, dense, fc1, fc2, lm_head"
    with pytest.raises(ValueError, match=rf"no module of the model is named '{wrong}'; {right}"):
        translate_targets(make_model(), ["Wqkv", "fc1", wrong])


@pytest.mark.parametrize(
    "names", [["layers.1.mixer.Wqkv", "layers.1.mlp.fc1"], ["1.mixer.Wqkv"]], ids=str
)
def test_blocks_numbered_by_several_layouts_are_refused(names):
    with pytest.raises(ValueError, match="number blocks as several layouts do"):
        translate_targets(make_model(), names)


def test_patterns_stay_as_they_are():
    model = make_model()
    for pattern in ("all-linear", r".*\.(q_proj|fc1)", r"model\.layers\.0\..*dense"):
        assert translate_targets(model, pattern) == pattern


@pytest.mark.parametrize(
    ("pattern", "message"),
    [(r".*\.(Wqkv|fc1)", "has 'Wqkv' of another layout"), ("fc1", "fits no module")],
)
def test_a_pattern_that_would_train_less_is_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        translate_targets(make_model(), pattern)


def test_all_fields_with_names_are_translated():
    config = make_lora(
        *("Wqkv", "fc_in"),
        exclude_modules=["transformer.h.0.mixer.Wqkv"],
        modules_to_save=["lm_head.linear"],
        rank_pattern={"Wqkv": 2, "q_proj": 3},
    )
    given = (config.target_modules, config.rank_pattern)
    translated = translate_config(make_model(), config)
    assert translated.target_modules == {*FUSED, "fc1"}
    assert translated.exclude_modules == {f"model.layers.0.self_attn.{name}" for name in FUSED}
    assert translated.modules_to_save == ["lm_head"]
    assert translated.rank_pattern == {"q_proj": 3, "k_proj": 2, "v_proj": 2}
    assert (config.target_modules, config.rank_pattern) == given


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"exclude_modules": ["mixer.o_proj"]}, "named 'mixer.o_proj'"),
        ({"modules_to_save": ["head"]}, "named 'head'"),
        ({"rank_pattern": {"w_proj": 2}}, "named 'w_proj'"),
        ({"layers_to_transform": [0, 2]}, "layers_to_transform has 2; blocks are numbered 0 to 1"),
    ],
)
def test_nothing_that_fits_nothing_is_ignored(values, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(make_model(), make_lora("Wqkv", **values))


def test_peft_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        get_peft_model(make_model(), make_lora("Wqkv"))


def test_fused_names_train_each_of_q_k_and_v():
    model = get_peft_model(make_model(), make_lora("Wqkv", "fc1"))
    model(IDS, labels=IDS).loss.backward()
    trained = {name for name, x in model.named_parameters() if x.grad is not None}
    assert adapted(model) == {*FUSED, "fc1"}
    assert len(trained) == 2 * 4 * 2  # blocks, modules, and the two matrices of each


def test_our_models_add_adapters_with_names_of_any_layout():
    model = make_model()
    model.add_adapter(make_lora("Wqkv", "out_proj"))
    assert adapted(model) == {*FUSED, "dense"}
    with pytest.raises(ValueError, match="named 'o_proj'"):
        model.add_adapter(make_lora("fc1", "o_proj"), "second")
    model.delete_adapter("default")
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("names", [("Wqkv", "fc1"), ("q_proj", "o_proj"), ("Wqkv", "out_proj")])
def test_plain_peft_refuses_what_it_would_pass_over(names):
    with pytest.raises(ValueError, match=r"'Wqkv'|'o_proj'"):
        peft.get_peft_model(make_model(), make_lora(*names))


def test_plain_peft_takes_our_own_names():
    assert adapted(peft.get_peft_model(make_model(), make_lora("q_proj", "fc1"))) == {
        *("q_proj", "fc1")
    }
    assert adapted(peft.get_peft_model(make_model(), peft.LoraConfig())) == {
        *("q_proj", "v_proj", "fc1", "fc2")
    }


def test_an_adapter_that_is_added_later_is_refused_when_training_begins():
    model = peft.get_peft_model(make_model(), make_lora("fc1"))
    model.train().add_adapter("second", make_lora("Wqkv", "fc2"))
    assert model.eval().training is False
    with pytest.raises(ValueError, match="PEFT passed over 'Wqkv'"):
        model.train()


def test_an_adapter_of_foreign_code_is_refused_when_loaded(tmp_path):
    get_peft_model(make_model(), make_lora("fc1")).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ["Wqkv", "fc1"]}))
    with pytest.raises(ValueError, match="PEFT passed over 'Wqkv'"):
        make_model().load_adapter(str(tmp_path))
    with pytest.raises(ValueError, match="PEFT passed over 'Wqkv'"):
        peft.PeftModel.from_pretrained(make_model(), tmp_path)


def test_classifiers_take_adapters_and_train_their_head():
    config = make_lora("Wqkv", task_type="SEQ_CLS")
    model = get_peft_model(make_model(PhiForSequenceClassification, num_labels=2), config)
    model.train()(IDS, attention_mask=MASK, labels=torch.tensor([0, 1, 1])).loss.backward()
    trained = [name for name, x in model.named_parameters() if x.grad is not None]
    assert adapted(model) == FUSED
    assert [name for name in trained if "score" in name]


def test_rows_with_different_adapters_equal_each_alone():
    model = get_peft_model(make_model(), make_lora("Wqkv", "fc2"))
    model.add_adapter("second", make_lora("dense"))
    stir(model)
    mixed = logits_of(model, adapter_names=["default", "second", "__base__"])
    alone = []
    for name in ("default", "second"):
        model.set_adapter(name)
        alone.append(logits_of(model))
    with model.disable_adapter():
        alone.append(logits_of(model))
    torch.testing.assert_close(mixed, torch.stack([x[i] for i, x in enumerate(alone)]))
    assert not torch.equal(alone[0], alone[2])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with an adapter, and the logits of the model that has it."""
    folder = tmp_path_factory.mktemp("adapter")
    model = stir(get_peft_model(make_model(), make_lora("Wqkv", "out_proj", "fc1", "fc2")))
    model.save_pretrained(folder)
    return folder, logits_of(model)


def test_a_saved_adapter_opens_with_peft(trained):
    folder, expected = trained
    model = peft.PeftModel.from_pretrained(make_model(), folder)
    assert torch.equal(logits_of(model), expected)
    assert not torch.allclose(logits_of(make_model()), expected)


def test_a_saved_adapter_opens_with_load_adapter(trained):
    folder, expected = trained
    model = make_model()
    model.load_adapter(str(folder))
    assert torch.equal(logits_of(model), expected)


@pytest.mark.parametrize("layout", "ABCD")
def test_a_merged_adapter_gives_the_same_logits_in_every_layout(trained, layout, tmp_path):
    folder, expected = trained
    merged = peft.PeftModel.from_pretrained(make_model(), folder).merge_and_unload()
    torch.testing.assert_close(logits_of(merged), expected)
    merged.save_pretrained(tmp_path / layout, layout=layout)
    reopened = PhiForCausalLM.from_pretrained(tmp_path / layout, dtype=torch.float32)
    torch.testing.assert_close(logits_of(reopened), expected)
    ours = phiscope.load_model(tmp_path / layout, dtype=torch.float32)
    torch.testing.assert_close(ours(IDS[0], pack_lengths([5])), expected[0])


def test_an_adapter_trains_on_a_frozen_low_precision_model():
    model = peft.prepare_model_for_kbit_training(make_model().to(torch.bfloat16))
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    model = get_peft_model(model, make_lora("Wqkv")).train()
    model(IDS, attention_mask=MASK, labels=IDS.masked_fill(MASK == 0, -100)).loss.backward()
    grads = [x.grad for name, x in model.named_parameters() if "lora_B" in name]
    assert len(grads) == 2 * 3
    assert all(grad.abs().sum() > 0 for grad in grads)


@pytest.mark.filterwarnings("ignore")  # bitsandbytes warns of kernels that this machine lacks
@pytest.mark.parametrize("layout", "BD")
def test_an_adapter_trains_on_weights_of_four_bits(layout, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes, which quantizes, is not installed")
    how = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    for name in {layout, "D"}:  # its kernels on a CPU take rows of 64 and more
        make_model(hidden_size=64).save_pretrained(tmp_path / name, layout=name)
    options = {"quantization_config": how, "dtype": torch.float32}
    peer = transformers.PhiForCausalLM.from_pretrained(tmp_path / "D", **options)
    model = PhiForCausalLM.from_pretrained(tmp_path / layout, **options)
    ours, theirs = (x(IDS).logits for x in (model, peer))  # no_grad would repack the weights
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    model = peft.prepare_model_for_kbit_training(model)
    model = get_peft_model(model, make_lora("Wqkv", "fc1")).train()
    losses = descend(model)
    assert losses[-1] < losses[0] - 0.3


def descend(model, steps=4):
    parameters = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.03)
    losses = []
    for _ in range(steps):
        loss = model(IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def test_a_folder_with_an_adapter_opens_on_the_model_it_names(tmp_path):
    make_model().save_pretrained(tmp_path / "base", layout="B")
    base = PhiForCausalLM.from_pretrained(tmp_path / "base")
    model = stir(get_peft_model(base, make_lora("Wqkv", "fc2", task_type="CAUSAL_LM")))
    expected = logits_of(model)
    model.save_pretrained(tmp_path / "adapter")
    folder = tmp_path / "adapter"
    assert torch.equal(logits_of(PhiForCausalLM.from_pretrained(folder)), expected)
    auto = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits_of(auto.eval()), expected)
    automatic = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits_of(automatic.eval()), expected)


@pytest.mark.parametrize("layout", "ABC")
def test_adapters_that_are_not_merged_are_not_saved_as_whole_weights(layout, tmp_path):
    model = get_peft_model(make_model(), make_lora("Wqkv")).get_base_model()
    with pytest.raises(UnsupportedError, match="merge the adapters first"):
        model.save_pretrained(tmp_path / layout, layout=layout)
