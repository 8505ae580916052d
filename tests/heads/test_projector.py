import copy
import json
import re

import pytest
import torch
from oracle import make_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import phiscope
from phiscope.config import PhiConfig
from phiscope.errors import CheckpointError, StoreError
from phiscope.heads.projector import Projector, load_projector, save_projector
from phiscope.hf import PhiForCausalLM, PhiModel
from phiscope.wide import widen

SMALL = PhiConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rotary_dim=8,
)


@pytest.fixture(scope="module")
def model():
    return make_model(SMALL, dtype=torch.float32)


def assert_same(ours, theirs):
    assert ours.sizes == theirs.sizes
    for name, weight in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight)


@pytest.fixture
def projector():
    torch.manual_seed(0)
    return Projector(6, 32, num_tokens=3, width=10)


@pytest.fixture
def file(tmp_path, projector, model):
    path = tmp_path / "projector.safetensors"
    save_projector(path, projector, model, model_name="small")
    return path


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (1, 6)])
def test_each_feature_becomes_its_own_tokens_in_order(projector, shape):
    features = torch.randn(shape)
    embeddings = projector(features)
    assert embeddings.shape == (*shape[:-2], shape[-2] * 3, 32)
    alone = [projector(row) for row in features.view(-1, 1, 6)]
    torch.testing.assert_close(embeddings.reshape(-1, 32), torch.cat(alone))


def test_one_token_for_each_patch_is_two_layers_and_a_gelu():
    projector = Projector(6, 32)
    features = torch.randn(4, 6, dtype=torch.float64)
    expected = projector.fc2(torch.nn.functional.gelu(projector.fc1(features.float())))
    assert torch.equal(projector(features), expected)


@pytest.mark.parametrize("features", [torch.zeros(6), torch.zeros(2, 5), torch.zeros(1, 6).int()])
def test_features_that_do_not_fit_are_refused(projector, features):
    with pytest.raises(ValueError, match=r"features are floating point of shape \(\.\.\., n, 6\)"):
        projector(features)


def test_sizes_below_one_are_refused_by_name():
    with pytest.raises(ValueError, match="num_tokens is an integer above 0, got 0"):
        Projector(6, 32, num_tokens=0)
    with pytest.raises(ValueError, match=r"feature_dim is an integer above 0, got 6\.5"):
        Projector(6.5, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_loaded_projector_is_the_saved_one(tmp_path, projector, model, dtype):
    save_projector(tmp_path / "p", projector.to(dtype), model)
    loaded = load_projector(tmp_path / "p", model)
    assert loaded.sizes == projector.sizes
    wide = torch.promote_types(dtype, torch.float32)
    for name, weights in projector.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weights.to(wide))
    assert loaded(torch.randn(2, 6)).requires_grad


def test_loading_draws_no_random_numbers(file, model):
    state = torch.get_rng_state()
    load_projector(file, model)
    assert torch.equal(torch.get_rng_state(), state)


def test_file_is_one_that_others_read(file, projector):
    assert torch.equal(load_file(file)["fc1.weight"], projector.fc1.weight)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["sizes"]) == projector.sizes
    assert metadata["model"] == "small"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_same_model_in_another_dtype_is_accepted(file, model, dtype):
    loaded = load_projector(file, copy.deepcopy(model).to(dtype))
    assert_same(loaded, load_projector(file, model))


def test_the_same_model_in_another_form_is_accepted(tmp_path):
    phi = phiscope.load("nano", mode="fp32-cpu")
    projector = Projector(4, 64)
    save_projector(tmp_path / "p", projector, phi.model)
    narrow = phiscope.load("nano", mode="bf16-cpu").model
    first = phiscope.load("nano", layers=2).model
    of_hf = [cls.from_pretrained("nano", dtype=torch.float32) for cls in (PhiForCausalLM, PhiModel)]
    for form in (narrow, widen(narrow), first, *of_hf):
        assert_same(load_projector(tmp_path / "p", form), projector)


def test_a_model_of_another_width_is_refused_by_name(file):
    message = "projector.safetensors is for small with hidden size 32, and this model has 64"
    with pytest.raises(CheckpointError, match=message):
        load_projector(file, phiscope.load("nano").model)


def test_another_model_of_the_same_shape_is_refused_by_name(file):
    message = "is for small, and this is another model: its embed_tokens.weight differs"
    with pytest.raises(CheckpointError, match=message):
        load_projector(file, make_model(SMALL, seed=1))


@pytest.mark.parametrize("name", ["lm_head", "model.layers.1.mlp.fc2"])
def test_a_model_with_one_other_matrix_is_refused(file, model, name):
    other = copy.deepcopy(model)
    other.get_submodule(name).weight.mul_(1.01)
    message = re.escape(f"its {name.removeprefix('model.')}.weight differs")
    with pytest.raises(CheckpointError, match=message):
        load_projector(file, other)


def test_a_deeper_model_is_refused(tmp_path, projector, model):
    first = phiscope.PhiForCausalLM(SMALL, layers=1)
    first.load_state_dict(model.state_dict(), strict=False)
    save_projector(tmp_path / "p", projector, first)
    with pytest.raises(CheckpointError, match=r"which has no layers\.1\.self_attn\.dense"):
        load_projector(tmp_path / "p", model)


def test_a_projector_for_another_width_is_not_saved(tmp_path, model):
    with pytest.raises(ValueError, match="the projector has hidden size 64, and the model has 32"):
        save_projector(tmp_path / "p", Projector(6, 64), model)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_an_error_of_ours(tmp_path, projector, model):
    with pytest.raises(StoreError, match="no-folder"):
        save_projector(tmp_path / "no-folder" / "p", projector, model)


def spoil_version(tensors, metadata):
    metadata["version"] = "2"


def spoil_sizes(tensors, metadata):
    metadata["sizes"] = "[6, 32]"


def claim_more(tensors, metadata):
    metadata["sizes"] = json.dumps({**json.loads(metadata["sizes"]), "width": 10**12})


def claim_the_impossible(tensors, metadata):
    metadata["sizes"] = json.dumps({**json.loads(metadata["sizes"]), "width": 10**30})


def name_another_size(tensors, metadata):
    metadata["sizes"] = json.dumps({**json.loads(metadata["sizes"]), "depth": 2})


def lose_a_layer(tensors, metadata):
    del tensors["fc2.bias"]


def mix_dtypes(tensors, metadata):
    tensors["fc2.bias"] = tensors["fc2.bias"].double()


def make_integer(tensors, metadata):
    tensors["fc2.bias"] = tensors["fc2.bias"].int()


def make_nan(tensors, metadata):
    tensors["fc2.weight"][0, 0] = float("nan")


DAMAGES = {
    spoil_version: "holds no projector of version 1",
    spoil_sizes: "sizes in .* must hold a JSON object",
    claim_more: "damaged projector",
    claim_the_impossible: "damaged projector",
    name_another_size: "damaged projector",
    lose_a_layer: r"(?s)damaged projector.*fc2\.bias",
    mix_dtypes: "differ in dtype",
    make_integer: "'fc2.bias' is torch.int32",
    make_nan: "not all finite",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_refused(file, model, damage):
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    damage(tensors, metadata)
    save_file(tensors, file, metadata)
    with pytest.raises(CheckpointError, match=DAMAGES[damage]):
        load_projector(file, model)


def test_a_file_cut_short_is_refused(file, model):
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="cut short"):
        load_projector(file, model)
