"""What a forward puts out equals what transformers' own class does with the same weights."""

import pytest
import torch
from hf.peers import (
    VARIANTS,
    assert_same,
    make_pair,
    pad_left,
    pad_right,
    random_ids,
    rope,
    shared_pair,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache

from phiscope.errors import UnsupportedError

LAST = 3  # the number of the last hidden state
PADDINGS = {
    "none": lambda rows, width, lengths: None,
    "ones": lambda rows, width, lengths: torch.ones(rows, width, dtype=torch.long),
    "left": lambda rows, width, lengths: pad_left(lengths, width),
    "right": lambda rows, width, lengths: pad_right(lengths, width),
    "holes": lambda rows, width, lengths: torch.tensor(
        [
            [(3 * row + 2 * place + lengths[row]) % 5 > 1 for place in range(width)]
            for row in range(rows)
        ]
    ),
}
CACHES = {
    "none": lambda config: None,
    "dynamic": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=12),
}


@st.composite
def calls(draw):
    """A variant, and arguments for one forward, given both as they are and as makers."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(1, width), min_size=rows, max_size=rows))
    mask = PADDINGS[draw(st.sampled_from(sorted(PADDINGS)))](rows, width, lengths)
    arguments = {} if mask is None else {"attention_mask": mask}
    if draw(st.booleans()):
        arguments["position_ids"] = draw_positions(draw, rows, width, mask)
    for name, values in {
        "use_cache": [None, True, False],
        "logits_to_keep": [0, 1, 2, torch.tensor([0]), torch.arange(width).flip(0)],
    }.items():
        arguments[name] = draw(st.sampled_from(values))
    return {
        "variant": draw(st.sampled_from(sorted(VARIANTS))),
        "attention": draw(st.sampled_from(["eager", "sdpa"])),
        "ids": random_ids(rows, width, draw(st.integers(0, 99))),
        "embeds": draw(st.booleans()),
        "cache": draw(st.sampled_from(sorted(CACHES))),
        "arguments": arguments,
    }


def draw_positions(draw, rows, width, mask):
    """Positions that count the kept tokens, stand elsewhere, or start anew within a row."""
    kind = draw(st.sampled_from(["counted", "shifted", "restarting", "one row"]))
    if kind == "counted" and mask is not None:
        return (mask.long().cumsum(1) - 1).clamp(min=0)
    if kind == "shifted":
        return (torch.arange(width) + 5).expand(rows, -1)
    if kind == "one row":
        return torch.arange(width)[None]
    period = draw(st.integers(1, width))
    return (torch.arange(width) % period).expand(rows, -1)


def run(model, call, **more):
    arguments = {**call["arguments"], **more}
    arguments["past_key_values"] = CACHES[call["cache"]](model.config)
    if call["embeds"]:
        return model(inputs_embeds=model.model.embed_tokens(call["ids"]), **arguments)
    return model(input_ids=call["ids"], **arguments)


def kept(call):
    mask = call["arguments"].get("attention_mask")
    return torch.ones_like(call["ids"]) if mask is None else mask


def kept_logits(call):
    where, wanted = kept(call), call["arguments"]["logits_to_keep"]
    if isinstance(wanted, torch.Tensor):
        return where[:, wanted]
    return where[:, -wanted:] if wanted else where


def checkpoint(model):
    """Compute activations again, by the name that the installed transformers has for it."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


@given(call=calls())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_logits_and_states_equal_those_of_transformers(call):
    ours, theirs = shared_pair(call["variant"], call["attention"])
    with torch.no_grad():
        a, b = (run(model, call, output_hidden_states=True) for model in (ours, theirs))
    assert_same(a.logits, b.logits, kept_logits(call))
    for mine, reference in zip(a.hidden_states, b.hidden_states, strict=True):
        assert_same(mine, reference, kept(call))
    assert type(a.past_key_values) is type(b.past_key_values)


@given(call=calls())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_attention_maps_equal_those_of_transformers_eager_attention(call):
    ours = shared_pair(call["variant"], call["attention"])[0]
    theirs = shared_pair(call["variant"], "eager")[1]
    with torch.no_grad():
        a, b = (run(model, call, output_attentions=True) for model in (ours, theirs))
    assert len(a.attentions) == LAST
    for mine, reference in zip(a.attentions, b.attentions, strict=True):
        assert_same(mine.transpose(1, 2), reference.transpose(1, 2), kept(call))
    assert_same(a.logits, b.logits, kept_logits(call))


@given(call=calls(), ignores=st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_losses_equal_those_of_transformers_also_where_labels_count_padding(call, ignores):
    ours, theirs = shared_pair(call["variant"], call["attention"])
    labels = call["ids"].masked_fill(kept(call) == 0, -100) if ignores else call["ids"]
    call["arguments"]["logits_to_keep"] = 0
    with torch.no_grad():
        a, b = (run(model, call, labels=labels) for model in (ours, theirs))
    assert torch.isnan(a.loss) if torch.isnan(b.loss) else torch.isclose(a.loss, b.loss, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", ["padded", "several in a row", "checkpointed", "bare labels"])
def test_gradients_of_every_parameter_equal_those_of_transformers(variant, layout):
    ours, theirs = make_pair(**VARIANTS[variant])
    ids, mask = random_ids(3, 7), pad_right([7, 4, 1])
    arguments = {"input_ids": ids, "use_cache": False}
    if layout == "several in a row":
        arguments |= {"position_ids": torch.tensor([0, 1, 2, 0, 1, 0, 1]).expand(3, -1)}
        arguments |= {"labels": ids}
    else:
        labels = ids if layout == "bare labels" else ids.masked_fill(mask == 0, -100)
        arguments |= {"attention_mask": mask, "labels": labels}
    for model in (ours, theirs):
        model.train()
        if layout == "checkpointed":
            checkpoint(model)
        model(**arguments).loss.backward()
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert_same(parameter.grad, reference[name].grad)


def test_gradients_of_hidden_states_and_of_embeddings_equal_those_of_transformers():
    mask = pad_left([5, 3])
    gradients = []
    for model in shared_pair():
        embeds = model.model.embed_tokens(random_ids(2, 5)).detach().requires_grad_()
        outputs = model(inputs_embeds=embeds, attention_mask=mask, output_hidden_states=True)
        score = (outputs.logits * mask[..., None]).square().mean()
        gradients.append(torch.autograd.grad(score, [embeds, *outputs.hidden_states]))
    for mine, reference in zip(*gradients, strict=True):
        assert_same(mine, reference, mask)


@pytest.mark.parametrize("wanted", [1, -1, [0], [-2, 0], [3, 3], (1, -4), range(4)])
def test_numbers_choose_hidden_states_and_leave_none_elsewhere(wanted):
    ours, theirs = shared_pair()
    ids, mask = random_ids(2, 5), pad_left([5, 3])
    states = ours(ids, attention_mask=mask, output_hidden_states=wanted).hidden_states
    reference = theirs(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    numbers = {n % (LAST + 1) for n in ([wanted] if isinstance(wanted, int) else wanted)}
    for number, (mine, theirs_) in enumerate(zip(states, reference, strict=True)):
        assert (mine is not None) == (number in numbers)
        if mine is not None:
            assert_same(mine, theirs_, mask)


@pytest.mark.parametrize("wanted", [4, -5, [0, 9]])
def test_a_hidden_state_that_does_not_exist_is_named(wanted):
    with pytest.raises(ValueError, match="numbered 0 to 3; there is no"):
        shared_pair()[0](random_ids(1, 2), output_hidden_states=wanted)


def test_no_hidden_states_are_given_where_none_are_wanted():
    ours, _ = shared_pair()
    for wanted in (None, False, []):
        assert ours(random_ids(1, 2), output_hidden_states=wanted).hidden_states is None


def test_the_config_says_whether_there_are_hidden_states():
    ours, theirs = make_pair(output_hidden_states=True)
    ids = random_ids(1, 3)
    for mine, reference in zip(ours(ids)[2], theirs(ids)[2], strict=True):
        assert_same(mine, reference)
    assert ours(ids, output_hidden_states=False).hidden_states is None


def test_the_last_state_is_after_the_final_norm_and_last_block_before_it():
    ours, _ = make_pair()
    ids, mask = random_ids(2, 5), pad_left([5, 2])
    after = ours(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    ours.config.hidden_states_format = "last_block"
    before = ours(ids, attention_mask=mask).hidden_states
    assert before.shape == (2, 5, 32)
    assert_same(ours.model.final_layernorm(before), after, mask)
    assert float((before - after)[mask.bool()].detach().abs().max()) > 0.1


def test_numbers_of_states_are_refused_where_the_format_has_one():
    ours, _ = make_pair(hidden_states_format="last_block")
    with pytest.raises(ValueError, match="hidden_states_format is 'last_block'"):
        ours(random_ids(1, 3), output_hidden_states=[1])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_maps_are_filled_in_every_dtype(attention, dtype):
    ours, _ = make_pair(attention=attention)
    exact = make_pair(attention="eager")[1]
    ids, mask = random_ids(2, 6), pad_left([6, 4])
    maps = ours.to(dtype)(ids, attention_mask=mask, output_attentions=True).attentions
    reference = exact(ids, attention_mask=mask, output_attentions=True).attentions
    for mine, theirs_ in zip(maps, reference, strict=True):
        assert mine.dtype == dtype
        rounding = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
        assert_same(mine.float().transpose(1, 2), theirs_.transpose(1, 2), mask, rounding)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("maps", [False, True])
def test_queries_of_300_stay_finite_in_fp16(attention, heads, maps):
    ours, _ = make_pair(attention=attention, num_key_value_heads=heads)
    with torch.no_grad():
        for block in ours.model.layers:
            block.self_attn.q_proj.bias.fill_(300.0)
            block.self_attn.k_proj.bias.fill_(300.0)  # 8 dimensions: q times k is 720 000
    ids, mask = random_ids(2, 6), pad_left([6, 4])
    wide = ours(ids, attention_mask=mask, output_attentions=True)
    ours.half()
    for spread in (False, True):
        narrow = ours(ids, attention_mask=mask, output_attentions=maps, compute_padding=spread)
        assert narrow.logits.isfinite().all()
        for mine, exact in zip(narrow.attentions or (), wide.attentions, strict=False):
            assert_same(mine.float().transpose(1, 2), exact.transpose(1, 2), mask, 0.2)


def test_logits_are_kept_as_transformers_keeps_them():
    ours, theirs = shared_pair()
    ids, mask = random_ids(2, 6), pad_left([6, 4])
    whole = theirs(ids, attention_mask=mask).logits
    places = torch.tensor([[5, 2], [3, 4]])

    def logits(wanted):
        with torch.no_grad():
            return ours(ids, attention_mask=mask, logits_to_keep=wanted).logits

    assert_same(logits(2), whole[:, -2:])
    assert_same(logits(torch.tensor([5, 2, 3])), whole[:, [5, 2, 3]], mask[:, [5, 2, 3]])
    assert_same(
        logits(places), torch.stack([row[at] for row, at in zip(whole, places, strict=True)])
    )
    assert_same(logits(mask.bool()), whole[mask.bool()])


def test_logits_in_another_order_are_those_of_their_tokens():
    ours, _ = shared_pair()
    ids, mask = random_ids(2, 3), pad_right([3, 2])
    with torch.no_grad():
        straight = ours(ids, attention_mask=mask).logits
        turned = ours(ids, attention_mask=mask, logits_to_keep=torch.tensor([2, 1, 0])).logits
    assert_same(turned.flip(1), straight, mask)


def test_losses_take_the_arguments_that_transformers_losses_take():
    ours, theirs = shared_pair()
    ids, mask = random_ids(2, 6), pad_right([6, 4])
    shifted = ids.roll(-1, dims=1).masked_fill(mask == 0, -100)
    for more in (
        {"num_items_in_batch": 7},
        {"num_items_in_batch": torch.tensor(5)},
        {"shift_labels": shifted},
        {"shift_labels": ids},
        {"ignore_index": int(ids[0, 3])},
    ):
        losses = [m(ids, attention_mask=mask, labels=ids, **more).loss for m in (ours, theirs)]
        assert_same(*losses)


@pytest.mark.parametrize("wanted", [{}, {"output_hidden_states": True}, {"use_cache": False}])
def test_a_tuple_holds_what_the_output_holds(wanted):
    ids = random_ids(1, 4)
    whole = [model(ids, labels=ids, **wanted) for model in shared_pair()]
    parts = [model(ids, labels=ids, return_dict=False, **wanted) for model in shared_pair()]
    assert list(whole[0].keys()) == list(whole[1].keys())
    assert [len(p) for p in parts] == [len(whole[0])] * 2
    assert_same(parts[0][0], whole[0].loss)
    assert_same(parts[0][1], parts[1][1])


def test_positions_beyond_the_context_are_scaled_dynamically_as_by_transformers():
    scaled = rope("dynamic", factor=2.0)
    ids = random_ids(1, 24)
    for where in ({}, {"position_ids": torch.arange(20, 44)[None]}):
        ours, theirs = make_pair(max_position_embeddings=16, rope_parameters=scaled)
        assert_same(ours(ids, **where).logits, theirs(ids, **where).logits)
    short = {"position_ids": torch.arange(20, 24)[None]}  # few tokens, far away
    ours, theirs = make_pair(max_position_embeddings=16, rope_parameters=scaled)
    assert_same(ours(ids[:, :4], **short).logits, theirs(ids[:, :4], **short).logits)


@pytest.mark.parametrize(
    "name",
    ["token_type_ids", "cache_position", "head_mask", "output_hiden_states"],
)
def test_an_unknown_argument_is_a_type_error(name):
    ours, _ = shared_pair()
    for model in (ours, ours.model):
        with pytest.raises(TypeError, match=f"no argument '{name}'"):
            model(random_ids(1, 3), **{name: torch.ones(1, 3)})


def test_attention_to_what_comes_after_is_refused():
    ours, _ = make_pair()
    with pytest.raises(UnsupportedError, match="is_causal=False"):
        ours(random_ids(1, 3), is_causal=False)
    ours.config.is_causal = False
    with pytest.raises(UnsupportedError, match="is_causal=False"):
        ours(random_ids(1, 3))


def test_an_attention_that_is_not_ours_is_named():
    ours, _ = make_pair()
    ours.config._attn_implementation_internal = "paged|sdpa"
    with pytest.raises(UnsupportedError, match=r"no attention 'paged\|sdpa' here; choose from"):
        ours(random_ids(1, 3))


def test_ids_and_embeddings_exclude_each_other():
    ours, _ = shared_pair()
    ids = random_ids(1, 3)
    for arguments in ({}, {"input_ids": ids, "inputs_embeds": ours.model.embed_tokens(ids)}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            ours(**arguments)
    with pytest.raises(ValueError, match="one of transformers' caches"):
        ours(ids, past_key_values=((ids, ids),))


def test_checkpointing_does_not_go_on_from_a_cache():
    ours, _ = make_pair()
    cache = ours(random_ids(1, 3)).past_key_values
    checkpoint(ours.train())
    with pytest.raises(ValueError, match="cannot go on from a cache"):
        ours(random_ids(1, 2), past_key_values=cache)


def test_dropout_of_attention_is_applied_in_training():
    """Nearly all of it is dropped, so that chance has no part."""
    torch.manual_seed(0)
    ours, theirs = make_pair(attention_dropout=1 - 1e-5)
    ids, mask = random_ids(2, 5), pad_right([5, 3])
    whole = ours(ids, attention_mask=mask).logits
    dropped = ours.train()(ids, attention_mask=mask).logits
    assert_same(dropped, theirs.train()(ids, attention_mask=mask).logits, mask)
    assert float((dropped - whole)[mask.bool()].detach().abs().max()) > 0.1


@pytest.mark.parametrize("grad", [False, True])
def test_autocast_gives_logits_of_its_dtype_with_padding_too(grad):
    ours, theirs = shared_pair("normed")
    ids, mask = random_ids(2, 6), pad_right([6, 3])
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        mine, reference = (model(ids, attention_mask=mask).logits for model in (ours, theirs))
    assert_same(mine, reference, mask, 0.05)
