import pytest
import torch
from hf.peers import fill, make_config

from phiscope.errors import UnsupportedError
from phiscope.hf import PhiForCausalLM
from phiscope.prepacked import PrepackedLinear
from phiscope.runtime import find_prepacking_obstacle

pytestmark = pytest.mark.skipif(
    find_prepacking_obstacle(torch.device("cpu"), torch.float32) is not None,
    reason="this build of torch lacks oneDNN",
)
IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def model():
    model = PhiForCausalLM(make_config(pad_token_id=0)).eval()
    fill(model)
    return model


@torch.no_grad()
def test_prepacked_model_gives_the_same_logits_and_tokens(model):
    logits = model(IDS).logits
    texts = model.generate(IDS, max_new_tokens=8, num_beams=2, do_sample=False)
    assert model.prepack() is model
    assert isinstance(model.lm_head, PrepackedLinear)
    torch.testing.assert_close(model(IDS).logits, logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.generate(IDS, max_new_tokens=8, num_beams=2, do_sample=False), texts)


def test_unpacked_model_is_the_one_it_was_and_trains(model):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.prepack().unpack()
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    model.requires_grad_(True).train()
    model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("layout", ["B", "D"])
def test_prepacked_model_is_saved_whole(model, tmp_path, layout):
    with torch.no_grad():
        logits = model(IDS).logits
    model.prepack().save_pretrained(tmp_path / layout, layout=layout)
    with torch.no_grad():
        again = PhiForCausalLM.from_pretrained(tmp_path / layout)(IDS).logits
    assert torch.equal(again, logits)


def test_model_in_training_mode_is_refused(model):
    with pytest.raises(UnsupportedError, match="for inference"):
        model.train().prepack()


def test_dtype_without_a_kernel_is_refused(model):
    with pytest.raises(UnsupportedError, match="no kernel"):
        model.double().prepack()
