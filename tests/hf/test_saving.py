import json

import pytest
import torch
import transformers
from hf.peers import VOCAB, fill, make_config

import phiscope
from phiscope.checkpoint import describe
from phiscope.errors import CheckpointError, UnsupportedError
from phiscope.hf import PhiForCausalLM, PhiModel

IDS = torch.arange(12).reshape(2, 6)


def make_model(**options):
    model = PhiForCausalLM(make_config(**options)).eval()
    fill(model)
    return model


@pytest.mark.parametrize("layout", ["A", "B", "C", "D"])
def test_saved_model_opens_again_with_the_same_weights(tmp_path, layout):
    model = make_model()
    model.save_pretrained(tmp_path / "saved", layout=layout)
    assert describe(tmp_path / "saved").layout == layout
    again = PhiForCausalLM.from_pretrained(tmp_path / "saved")
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


@pytest.mark.parametrize("layout", ["A", "B", "C", "D"])
def test_saved_model_is_the_packed_forwards(tmp_path, layout):
    model = make_model()
    model.save_pretrained(tmp_path / "saved", layout=layout)
    packed = phiscope.load_model(tmp_path / "saved", dtype=torch.float32)
    inputs, packing = phiscope.pack(IDS.tolist())
    expected = model(IDS).logits.flatten(0, 1)
    torch.testing.assert_close(packed(inputs, packing), expected, atol=1e-5, rtol=1e-5)


def test_saved_by_default_it_opens_in_plain_transformers(tmp_path):
    model = make_model(hidden_states_format="last_block")
    model.save_pretrained(tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(plain) is transformers.PhiForCausalLM
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)


def test_microsofts_layout_is_saved_as_layout_d_unless_another_is_named(tmp_path):
    make_model().save_pretrained(tmp_path / "B", layout="B")
    PhiForCausalLM.from_pretrained(tmp_path / "B").save_pretrained(tmp_path / "again")
    assert describe(tmp_path / "again").layout == "D"
    assert json.loads((tmp_path / "again/config.json").read_text())["model_type"] == "phi"


def test_saved_shards_are_as_small_as_asked(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "B", layout="B", max_shard_size="40KB")
    model.save_pretrained(tmp_path / "D", max_shard_size="40KB")
    for layout in ("B", "D"):
        assert len(list((tmp_path / layout).glob("model-*.safetensors"))) > 1
        again = PhiForCausalLM.from_pretrained(tmp_path / layout)
        assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_generation_settings_are_saved_with_any_layout(tmp_path):
    model = make_model()
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(tmp_path / "B", layout="B")
    assert PhiForCausalLM.from_pretrained(tmp_path / "B").generation_config.max_new_tokens == 5


def test_tied_head_is_saved_whole_in_microsofts_layout(tmp_path):
    model = make_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "B", layout="B")
    again = PhiForCausalLM.from_pretrained(tmp_path / "B")
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)


def test_rows_added_to_the_embedding_are_saved(tmp_path):
    model = make_model()
    model.resize_token_embeddings(VOCAB + 6)
    assert model.config.vocab_size == model.lm_head.out_features == VOCAB + 6
    for layout in ("B", "D"):
        model.save_pretrained(tmp_path / layout, layout=layout)
        again = PhiForCausalLM.from_pretrained(tmp_path / layout)
        assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        make_model().save_pretrained(tmp_path, layout="B")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_body_alone_has_no_form_in_microsofts_layout(tmp_path):
    with pytest.raises(UnsupportedError, match="causal model"):
        PhiModel(make_model().config).save_pretrained(tmp_path / "B", layout="B")


def test_what_a_layout_cannot_say_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="qk_layernorm"):
        make_model(qk_layernorm=True).save_pretrained(tmp_path / "B", layout="B")


def test_unknown_layout_and_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no layout 'E'"):
        make_model().save_pretrained(tmp_path / "E", layout="E")
    with pytest.raises(TypeError, match="push_to_hub"):
        make_model().save_pretrained(tmp_path / "B", layout="B", push_to_hub=True)
    with pytest.raises(ValueError, match="like '5GB'"):
        make_model().save_pretrained(tmp_path / "B", layout="B", max_shard_size="much")
