import dataclasses
import math

import numpy as np
import pytest
import torch

from phiscope.errors import ContextLengthError
from phiscope.generation.options import GenerationOptions
from phiscope.generation.task import Limits


@pytest.fixture
def limits(config):
    return Limits(config=config, context=16, num_tokens=257, tokenizer=None, makes_plans=False)


def make_task(limits, prompt=(1, 2, 3), **options):
    return limits.make_task(prompt, GenerationOptions(**{"max_new_tokens": 4, **options}), None)


def test_ids_may_come_as_any_integers(limits):
    for prompt in ([1, 2], (1, 2), torch.tensor([1, 2]), np.array([1, 2])):
        assert make_task(limits, prompt).prompt.ids == [1, 2]


def test_embeddings_are_copied(limits):
    embeddings = torch.ones(2, 32)
    task = make_task(limits, embeddings)
    embeddings.zero_()
    assert task.prompt.embeddings.sum() == 64
    assert len(task.prompt) == 2


def test_context_is_filled_to_the_last_token_and_no_further(limits):
    make_task(limits, [1] * 12)
    with pytest.raises(ContextLengthError, match="13 tokens of prompt and max_new_tokens=4"):
        make_task(limits, [1] * 13)


def test_text_is_refused_where_ids_belong(limits):
    with pytest.raises(TypeError, match="encode the text first"):
        make_task(limits, "text")


def test_end_token_stops_unless_told_otherwise(limits, tokenizer):
    with_tokenizer = dataclasses.replace(limits, tokenizer=tokenizer)
    for some in (limits, with_tokenizer):
        assert make_task(some).stop_ids == {256}
    assert make_task(limits, ignore_eos=True).stop_ids == frozenset()
    assert make_task(limits, stop_token_ids=(5, 256), ignore_eos=True).stop_ids == {5}
    assert make_task(limits, stop_token_ids=()).stop_ids == frozenset()


def test_seed_is_drawn_where_none_is_given(limits):
    assert make_task(limits, seed=3).seed == 3
    seeds = {make_task(limits).seed for _ in range(8)}
    assert len(seeds) == 8
    assert GenerationOptions(seed=seeds.pop())


def test_one_token_that_is_not_banned_is_enough(limits):
    banned = dict.fromkeys(range(256), -math.inf)
    make_task(limits, logit_bias=banned)
    with pytest.raises(ValueError, match="bans all tokens"):
        make_task(limits, logit_bias={**banned, 256: -math.inf})


def test_embeddings_have_nothing_to_echo(limits):
    with pytest.raises(ValueError, match="no text or logprobs to echo"):
        make_task(limits, torch.ones(2, 32), echo=True)
