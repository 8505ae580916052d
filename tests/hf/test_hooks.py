"""Hooks see the batch as the caller has it, and what they change takes effect."""

import pytest
import torch
from hf.peers import assert_same, pad_left, pad_right, random_ids, shared_pair
from torch.nn.modules.module import register_module_forward_hook

PLACES = {
    "model.embed_tokens": 32,
    "model.layers.1": 32,
    "model.layers.1.input_layernorm": 32,
    "model.layers.1.self_attn": 32,
    "model.layers.1.self_attn.q_proj": 32,
    "model.layers.1.self_attn.k_proj": 32,
    "model.layers.1.self_attn.v_proj": 32,
    "model.layers.1.self_attn.dense": 32,
    "model.layers.1.mlp": 32,
    "model.layers.1.mlp.fc1": 48,
    "model.layers.1.mlp.fc2": 32,
    "model.final_layernorm": 32,
    "lm_head": 99,
}
MASKS = {"none": None, "left": pad_left([5, 3]), "right": pad_right([5, 3])}


def watch(model, place, change=None):
    """What a forward hook at a place sees: the tensor, alone or first of a tuple."""
    seen = []

    def hook(module, inputs, output):
        tensor = output[0] if isinstance(output, tuple) else output
        seen.append(tensor.detach().clone())
        if change is None:
            return None
        changed = change(tensor)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return seen, model.get_submodule(place).register_forward_hook(hook)


def run(model, place, mask, **how):
    seen, handle = watch(model, place, **how)
    try:
        with torch.no_grad():
            logits = model(random_ids(2, 5), attention_mask=mask).logits
    finally:
        handle.remove()
    assert len(seen) == 1
    return seen[0], logits


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("place", PLACES)
def test_a_hook_sees_what_it_sees_in_transformers(place, padding):
    (mine, logits), (reference, logits_) = (
        run(model, place, MASKS[padding]) for model in shared_pair()
    )
    assert mine.shape == (2, 5, PLACES[place])
    assert_same(mine, reference, MASKS[padding])
    assert_same(logits, logits_, MASKS[padding])


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("place", PLACES)
def test_what_a_hook_changes_takes_effect_as_in_transformers(place, padding):
    def double(tensor):
        return tensor * torch.linspace(0.5, 2, tensor.shape[-1])

    mask = MASKS[padding]
    ours, theirs = shared_pair()
    changed, changed_ = (run(model, place, mask, change=double)[1] for model in (ours, theirs))
    untouched = run(ours, place, mask)[1]
    assert_same(changed, changed_, mask)
    where = torch.ones(2, 5).bool() if mask is None else mask.bool()
    assert float((changed - untouched)[where].abs().max()) > 1e-2


def test_attention_puts_out_a_tuple_with_its_maps():
    ours, _ = shared_pair()
    outputs = []
    attention = ours.model.layers[0].self_attn
    handle = attention.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        whole = ours(random_ids(2, 5), attention_mask=MASKS["left"], output_attentions=True)
        ours(random_ids(2, 5), attention_mask=MASKS["left"])
    finally:
        handle.remove()
    assert [type(output) for output in outputs] == [tuple, tuple]
    assert torch.equal(outputs[0][1], whole.attentions[0])
    assert outputs[1][1] is None


def test_a_hook_before_a_block_changes_what_goes_in():
    def add(module, inputs):
        return (inputs[0] + 1, *inputs[1:])

    mask, logits = MASKS["left"], []
    for model in shared_pair():
        handle = model.model.layers[1].register_forward_pre_hook(add)
        try:
            logits.append(model(random_ids(2, 5), attention_mask=mask).logits)
        finally:
            handle.remove()
    assert_same(*logits, mask)


def test_a_backward_hook_sees_the_gradient_of_the_batch():
    mask, seen = MASKS["right"], []
    labels = random_ids(2, 5).masked_fill(mask == 0, -100)
    for model in shared_pair():
        handle = model.model.layers[1].register_full_backward_hook(
            lambda module, inputs, outputs: seen.append(outputs[0])
        )
        try:
            model(random_ids(2, 5), attention_mask=mask, labels=labels).loss.backward()
        finally:
            handle.remove()
            model.zero_grad()
    assert seen[0].shape == (2, 5, 32)
    assert_same(*seen, mask)


def test_a_hook_on_all_modules_sees_the_batch():
    ours, _ = shared_pair()
    seen = []

    def hook(module, inputs, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = register_module_forward_hook(hook)
    try:
        ours.model(random_ids(2, 5), attention_mask=MASKS["right"])
    finally:
        handle.remove()
    tensors = [output for output in seen if isinstance(output, torch.Tensor)]
    assert len(tensors) > 20
    assert {tensor.shape[:2] for tensor in tensors} == {(2, 5)}


def test_without_hooks_padding_is_not_computed():
    """What hooks cost, and why there are two ways through the blocks."""
    ours, _ = shared_pair()
    shapes = []
    block = ours.model.layers[0]
    forward = block.forward
    block.forward = lambda x, run: shapes.append(tuple(x.shape)) or forward(x, run)
    try:
        ours(random_ids(2, 5), attention_mask=MASKS["right"])
    finally:
        del block.forward
    assert shapes == [(1, 8, 32)]
