"""`generate` gives the tokens, scores and states that it gives with transformers' own class."""

import pytest
import torch
import transformers
from hf.peers import assert_same, make_config, make_pair, pad_left, random_ids, shared_pair
from transformers import AutoTokenizer, DynamicCache, StaticCache, TextStreamer

from phiscope.checkpoint.hub import resolve
from phiscope.errors import UnsupportedError
from phiscope.hf import PhiForCausalLM

NEW = 8
MASK = pad_left([6, 3, 1])
WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 0.8},
    "min-p sampling": {"do_sample": True, "min_p": 0.05, "typical_p": 0.9},
    "beams": {"num_beams": 3},
    "several beams": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5},
    "early beams": {"num_beams": 3, "early_stopping": True},
    "beam sampling": {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "at least": {"min_new_tokens": 6},
    "no more than": {"max_new_tokens": None, "max_length": 9, "min_length": 8},
    "forbidden": {"bad_words_ids": [[5], [7, 8]], "suppress_tokens": [9, 10]},
    "without a cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "offloaded cache": {"cache_implementation": "offloaded"},
    "prompt in chunks": {"prefill_chunk_size": 2},
    "guided": {"guidance_scale": 1.5},
    "watermarked": {
        "watermarking_config": transformers.WatermarkingConfig(bias=2.5, seeding_scheme="selfhash")
    },
    "group beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained beams": {"num_beams": 3, "force_words_ids": [[5]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
}


@pytest.fixture(scope="module")
def pair():
    return make_pair(pad_token_id=0, max_position_embeddings=128)


@pytest.fixture(scope="module")
def drafts():
    return make_pair(pad_token_id=0, max_position_embeddings=128, num_hidden_layers=1)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve("nano"))


@pytest.fixture(scope="module")
def nano():
    """The embedded model, ours and transformers'."""
    folder = resolve("nano")
    ours = PhiForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = transformers.PhiForCausalLM(transformers.PhiConfig(**ours.config.to_dict())).eval()
    theirs.load_state_dict(ours.state_dict())
    theirs.generation_config = ours.generation_config
    return ours, theirs


def outcome(model, ids, **options):
    """The new sequences, or what is said instead."""
    torch.manual_seed(0)
    try:
        return model.generate(ids, **{"max_new_tokens": NEW, "do_sample": False, **options})
    except (ValueError, AssertionError) as error:
        return type(error), str(error)


def assert_same_outcome(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_generating_gives_the_tokens_or_the_answer_of_transformers(pair, way):
    ids = random_ids(3, 6) * MASK
    assert_same_outcome(*(outcome(model, ids, attention_mask=MASK, **WAYS[way]) for model in pair))


@pytest.mark.parametrize("rows", [1, 3])
def test_ids_alone_are_prompt_enough(pair, rows):
    assert_same_outcome(*(outcome(model, random_ids(rows, 5)) for model in pair))


def test_a_left_padded_batch_gives_what_each_prompt_gives_alone(pair):
    ours, _ = pair
    ids = random_ids(3, 6) * MASK
    batch = outcome(ours, ids, attention_mask=MASK, min_new_tokens=NEW)
    for row, kept in enumerate(MASK.bool()):
        alone = outcome(ours, ids[row, kept][None], min_new_tokens=NEW)
        assert torch.equal(batch[row, -NEW:], alone[0, -NEW:])


def test_a_prompt_that_ends_in_padding_gives_what_it_gives_in_transformers(pair):
    ids = random_ids(3, 6) * MASK.flip(1)
    for options in ({}, {"num_beams": 2}, {"use_cache": False}):
        assert_same_outcome(
            *(outcome(model, ids, attention_mask=MASK.flip(1), **options) for model in pair)
        )


def test_embeddings_are_a_prompt_too(pair):
    mask, tokens = pad_left([5, 3]), []
    for model in pair:
        embeds = model.get_input_embeddings()(random_ids(2, 5))
        tokens.append(
            model.generate(
                inputs_embeds=embeds, attention_mask=mask, max_new_tokens=NEW, do_sample=False
            )
        )
    assert tokens[0].shape[1] > 1
    assert torch.equal(*tokens)


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_draft_model_assists(pair, drafts, do_sample):
    ids = random_ids(1, 6)
    tokens = [
        outcome(model, ids, assistant_model=draft, do_sample=do_sample)
        for model, draft in zip(pair, drafts, strict=True)
    ]
    assert_same_outcome(*tokens)
    if not do_sample:
        assert torch.equal(tokens[0], outcome(pair[0], ids))


def test_drafts_are_looked_up_in_the_prompt(pair):
    ids = random_ids(1, 4).repeat(1, 3)
    tokens = [
        outcome(model, ids, prompt_lookup_num_tokens=3, max_matching_ngram_size=2) for model in pair
    ]
    assert_same_outcome(*tokens)
    assert torch.equal(tokens[0], outcome(pair[0], ids))


def test_the_first_blocks_draft_for_all(pair):
    ids = random_ids(1, 6)
    tokens = [outcome(model, ids, assistant_early_exit=1) for model in pair]
    assert_same_outcome(*tokens)
    assert torch.equal(tokens[0], outcome(pair[0], ids))
    assert len(pair[0].model.layers) == pair[0].config.num_hidden_layers == 3


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_scores_states_and_maps_of_every_step_equal_those_of_transformers(attention, options):
    ours = make_pair(pad_token_id=0, attention=attention)[0]
    theirs = make_pair(pad_token_id=0, attention="eager")[1]
    ids, wanted = random_ids(3, 6) * MASK, ("scores", "logits", "hidden_states", "attentions")
    mine, reference = (
        model.generate(
            ids,
            attention_mask=MASK,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            return_dict_in_generate=True,
            **{f"output_{name}": True for name in wanted},
            **options,
        )
        for model in (ours, theirs)
    )
    assert torch.equal(mine.sequences, reference.sequences)
    assert mine.keys() == reference.keys()
    for step, (scores, scores_) in enumerate(zip(mine.scores, reference.scores, strict=True)):
        finite = scores_.isfinite()
        assert_same(scores[finite], scores_[finite])
        assert_same(mine.logits[step], reference.logits[step])
        real = real_places(step, mine.hidden_states[step][0], options)
        for state, state_ in zip(
            mine.hidden_states[step], reference.hidden_states[step], strict=True
        ):
            assert_same(state, state_, real)
        for maps, maps_ in zip(mine.attentions[step], reference.attentions[step], strict=True):
            assert_same(maps.transpose(1, 2), maps_.transpose(1, 2), real)


def real_places(step, states, options):
    """Where the states (B, T, hidden) of a step are of tokens and not of padding."""
    mask = MASK.repeat_interleave(options.get("num_beams", 1), dim=0)
    mask = torch.nn.functional.pad(mask, (0, step), value=1)
    return mask[:, -states.shape[1] :]


def test_states_of_a_step_are_chosen_by_number_and_by_format():
    ours, _ = make_pair(pad_token_id=0)
    how = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}
    some = ours.generate(random_ids(1, 4), output_hidden_states=[0, -1], **how)
    assert [state is None for state in some.hidden_states[0]] == [False, True, True, False]
    ours.config.hidden_states_format = "last_block"
    one = ours.generate(random_ids(1, 4), output_hidden_states=True, **how)
    assert [step.shape for step in one.hidden_states] == [(1, 4, 32), (1, 1, 32)]
    assert torch.equal(one.sequences, some.sequences)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_second_turn_goes_on_from_the_cache_of_the_first(pair, kind):
    turns = []
    for model in pair:
        cache = DynamicCache(config=model.config)
        if kind == "static":
            cache = StaticCache(config=model.config, max_cache_len=32)
        first = outcome(model, random_ids(2, 5), past_key_values=cache, min_new_tokens=NEW)
        longer = torch.cat([first, random_ids(2, 3, seed=1)], dim=1)
        turns.append(outcome(model, longer, past_key_values=cache, min_new_tokens=NEW))
    assert turns[0].shape == (2, 5 + 3 + 2 * NEW)
    assert_same_outcome(*turns)


def test_a_custom_loop_is_called_with_the_model(pair):
    def loop(model, input_ids, **arguments):
        step = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True)
        logits = model(**step, logits_to_keep=1).logits
        return torch.cat([input_ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)

    tokens = [outcome(model, random_ids(2, 5), custom_generate=loop) for model in pair]
    assert tokens[0].shape == (2, 6)
    assert_same_outcome(*tokens)


def test_masks_of_a_cache_of_fixed_size_are_of_a_kind_that_is_read():
    config = make_config()
    config._attn_implementation_internal = "flex_attention"
    mask = PhiForCausalLM.create_masks_for_generate(
        config,
        inputs_embeds=torch.empty(1, 2, 0),
        attention_mask=torch.tensor([[0, 1]]),
        past_key_values=StaticCache(config=config, max_cache_len=4),
    )
    assert mask.tolist() == [[[[False, False, False, False], [False, True, False, False]]]]


def test_a_text_stops_at_a_string(nano, tokenizer):
    prompt = tokenizer("def add(a, b):\n    return", return_tensors="pt")
    whole = outcome(nano[0], **as_ids(prompt), max_new_tokens=12)
    stop = tokenizer.decode(whole[0, -4:-2])
    tokens = [
        outcome(model, **as_ids(prompt), max_new_tokens=12, stop_strings=stop, tokenizer=tokenizer)
        for model in nano
    ]
    assert_same_outcome(*tokens)
    assert tokens[0].shape[1] < whole.shape[1]
    assert stop in tokenizer.decode(tokens[0][0, prompt["input_ids"].shape[1] :])


def test_a_streamer_says_what_is_generated(nano, tokenizer, capsys):
    prompt = tokenizer("def add(a, b):", return_tensors="pt")
    texts = []
    for model in nano:
        tokens = outcome(
            model, **as_ids(prompt), streamer=TextStreamer(tokenizer, skip_prompt=True)
        )
        texts.append(capsys.readouterr().out)
        new = tokens[0, prompt["input_ids"].shape[1] :]
        assert texts[-1].rstrip("\n") == tokenizer.decode(new).rstrip("\n")
    assert texts[0] == texts[1]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}])
def test_a_trained_model_generates_as_in_transformers(nano, tokenizer, options):
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    prompts = ["def add(a, b):\n    return", "import", "class Stack:\n    def push(self"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    options = {"pad_token_id": tokenizer.eos_token_id, "max_new_tokens": 16, **options}
    assert_same_outcome(*(outcome(model, **as_ids(batch), **options) for model in nano))


def as_ids(batch):
    """A tokenizer's output as the arguments of `outcome`."""
    return {"ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def test_an_unknown_option_is_refused_as_by_transformers():
    for model in shared_pair():
        with pytest.raises(ValueError, match=r"not used by the model: \['temprature'\]"):
            model.generate(random_ids(1, 3), temprature=0.5, max_new_tokens=2)


def test_continuous_batching_is_refused_by_name(pair):
    with pytest.raises(UnsupportedError, match="generate_batch needs transformers' paged cache"):
        pair[0].generate_batch([[5, 6], [7]], max_new_tokens=2)
