"""Wide arithmetic on narrow weights equals an fp32 model with the same weights."""

from copy import deepcopy

import pytest
import torch
from oracle import make_model

import phiscope
from phiscope import MODES, PhiConfig, PhiForCausalLM, pack
from phiscope.errors import UnsupportedError
from phiscope.wide import widen

SMALL = PhiConfig(
    vocab_size=96,
    rotary_dim=8,
    hidden_size=64,
    intermediate_size=320,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=128,
)


@pytest.fixture
def narrow():
    return make_model(SMALL).bfloat16()


@pytest.mark.parametrize("lengths", [(1,), (3, 5), (70, 40)])
def test_wide_logits_equal_those_of_the_weights_in_fp32(narrow, lengths):
    ids, packed = pack([[(7 * i + n) % 96 for i in range(n)] for n in lengths])
    with torch.inference_mode():
        ours = widen(narrow)(ids, packed)
        theirs = make_model(SMALL).bfloat16().float()(ids, packed)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_wide_model_shares_the_weights_and_leaves_the_narrow_one_alone(narrow):
    before = {name: x.data_ptr() for name, x in narrow.state_dict().items()}
    wide = widen(narrow)
    assert {name: x.data_ptr() for name, x in wide.state_dict().items()} == before
    assert {x.dtype for x in narrow.parameters()} == {torch.bfloat16}
    assert wide.model.hidden_dtype == torch.float32


def test_a_model_of_some_layers_is_widened(narrow):
    wide = widen(PhiForCausalLM(SMALL, layers=2).bfloat16())
    assert wide.lm_head is None
    assert len(wide.model.layers) == 2


def test_widening_twice_changes_nothing(narrow):
    ids, packed = pack([[1, 2, 3]])
    with torch.inference_mode():
        once = widen(narrow)
        assert widen(once)(ids, packed).equal(once(ids, packed))


def test_forwards_inside_and_outside_of_inference_mode_may_alternate(narrow):
    ids, packed = pack([[1, 2, 3]])
    wide = widen(narrow)
    with torch.inference_mode():
        inside = wide(ids, packed)
    assert wide(ids, packed).equal(inside)


def test_text_is_generated_in_wide_arithmetic_as_in_fp32():
    narrow = phiscope.load("nano", mode="bf16-fp32-cpu")
    whole = phiscope.load("nano", mode="bf16-cpu")
    whole.model.float()
    prompts = ["The sky is", "def add(a, b):"]
    ours = narrow.generate(prompts, max_new_tokens=12)
    theirs = phiscope.Phi(whole.model, whole.tokenizer, MODES["fp32-cpu"]).generate(
        prompts, max_new_tokens=12
    )
    assert [x.token_ids for x in ours] == [x.token_ids for x in theirs]


def test_gradients_pass_through_to_the_inputs_as_in_fp32(narrow):
    ids, packed = pack([[1, 2, 3], [4, 5]])
    wide, exact = widen(deepcopy(narrow).requires_grad_(False)), deepcopy(narrow).float()
    found = []
    for model in (wide, exact):
        inputs = model.model.embed_tokens(ids).detach().requires_grad_()
        model(inputs, packed)[:, 7].sum().backward()
        found.append(inputs.grad)
    torch.testing.assert_close(*found)
    assert found[0].abs().sum() > 0


def test_gradients_of_narrow_weights_are_refused(narrow):
    ids, packed = pack([[1, 2, 3]])
    wide = widen(deepcopy(narrow).requires_grad_(True))
    with pytest.raises(UnsupportedError, match="train in fp32 or bf16"):
        wide(ids, packed)
