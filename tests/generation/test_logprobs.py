import math

import pytest
import torch

from phiscope.generation.logprobs import read_logprobs

LOGITS = torch.tensor([[0.0, 1.0, 2.0, 5.0], [3.0, 0.0, 1.0, -9.0]])


def test_logprobs_are_those_of_the_whole_distribution():
    first, second = read_logprobs(LOGITS, [1, 0], [0, 2], num_tokens=3)
    total = math.log(sum(math.exp(x) for x in LOGITS[0].tolist()))
    assert first.token_id == 1
    assert first.logprob == pytest.approx(1.0 - total)
    assert first.top == []
    assert [token_id for token_id, _ in second.top] == [0, 2]
    assert second.top[0][1] == pytest.approx(second.logprob)


def test_spare_ids_are_not_listed_but_can_be_scored():
    (scored,) = read_logprobs(LOGITS[:1], [3], [4], num_tokens=3)
    assert scored.logprob > -0.1
    assert [token_id for token_id, _ in scored.top] == [2, 1, 0]
