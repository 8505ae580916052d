import pytest
import torch
from hf.peers import make_config

from phiscope.hf import PhiForCausalLM, PhiForSequenceClassification

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
LEFT = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
RIGHT = LEFT.flip(1)
TWO_SEQUENCES = torch.tensor([[0, 1, 2, 0, 1, 2]]).expand(2, -1)
CASES: dict[str, list[dict[str, object]]] = {  # inputs that are one graph
    "mask": [{"attention_mask": LEFT}, {"attention_mask": RIGHT}],
    "two sequences": [{"position_ids": TWO_SEQUENCES}],
    "states": [{"output_hidden_states": True, "output_attentions": True}],
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def make_model(model_class=PhiForCausalLM, **options):
    torch.manual_seed(0)
    common = {"num_hidden_layers": 2, "num_key_value_heads": 2, "use_cache": False}
    return model_class(make_config(**{**common, **options})).eval()


def shown(output, mask=None):
    """Logits (B, T, vocab), zero where there is padding, whose logits mean nothing."""
    return output.logits if mask is None else output.logits * mask[..., None]


def assert_alike(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_compiled_forward_is_one_graph_and_equals_the_eager_one(case):
    model = make_model()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for inputs in CASES[case]:
        with torch.no_grad():
            ours, theirs = compiled(IDS, **inputs), model(IDS, **inputs)
        mask = inputs.get("attention_mask")
        assert_alike(shown(ours, mask), shown(theirs, mask))
        assert_alike(ours.hidden_states, theirs.hidden_states)
        assert_alike(ours.attentions, theirs.attentions)


def test_a_compiled_forward_takes_batches_of_every_size():
    model = make_model(num_hidden_layers=1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for rows, width in ((2, 6), (4, 3), (4, 1)):  # the second makes both axes symbols
            ids = IDS.flatten()[: rows * width].view(rows, width)
            assert_alike(compiled(ids).logits, model(ids).logits)


def test_a_compiled_step_of_training_gives_the_same_gradients():
    model = make_model(num_hidden_layers=1).train()
    inputs = {"attention_mask": RIGHT, "labels": IDS.masked_fill(RIGHT == 0, -100)}
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    gradients = []
    for forward in (model, compiled):
        model.zero_grad()
        forward(IDS, **inputs).loss.backward()
        gradients.append({name: x.grad.clone() for name, x in model.named_parameters()})
    assert_alike(*gradients)


def test_a_compiled_prompt_fills_the_cache_that_goes_on():
    model = make_model(num_hidden_layers=1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        cache = compiled(IDS[:, :5], use_cache=True).past_key_values
        step = model(IDS[:, 5:], past_key_values=cache, use_cache=True).logits
        assert_alike(step[:, 0], model(IDS).logits[:, 5])


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_the_exported_forward_takes_other_shapes_and_equals_the_eager_one(masked):
    model = make_model(num_hidden_layers=1)
    inputs = {"input_ids": IDS} | ({"attention_mask": LEFT} if masked else {})
    axes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("width")}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, axes))
    other = {name: torch.cat([x, x[:1]])[:, 2:] for name, x in inputs.items()}
    mask = other.get("attention_mask")
    with torch.no_grad():
        for given, kept in ((inputs, inputs.get("attention_mask")), (other, mask)):
            assert_alike(shown(exported.module()(**given), kept), shown(model(**given), kept))


def test_the_exported_classifier_finds_the_last_tokens():
    model = make_model(PhiForSequenceClassification, num_labels=3)
    inputs = {"input_ids": IDS, "attention_mask": RIGHT}
    exported = torch.export.export(model, (), inputs)
    other = {"input_ids": IDS.flip(0), "attention_mask": RIGHT.flip(0)}
    with torch.no_grad():
        assert_alike(exported.module()(**other).logits, model(**other).logits)
