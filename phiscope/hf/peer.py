"""transformers' own class on the weights of a folder, to be timed beside ours."""

import statistics
import time
from pathlib import Path

import torch
import transformers
from torch import Tensor

from phiscope.evaluation.speed import Speed
from phiscope.hf.causal_lm import PhiForCausalLM


def measure_transformers(
    folder: Path, *, dtype: str, prompt_tokens: int, new_tokens: int, batch: int, repeats: int
) -> Speed:
    """What `evaluation.speed.measure_speed` measures of ours, with sdpa and its own cache."""
    model = load_transformers(folder, dtype)
    short = min(64, prompt_tokens)
    run(model, 1, prompt_tokens, 2)
    prefill, decode, batch_decode = [], [], []
    for _ in range(repeats):
        prefill.append(prompt_tokens / run(model, 1, prompt_tokens, 1)[0])
        decode.append(new_tokens / run(model, 1, short, 1 + new_tokens)[1])
        batch_decode.append(batch * new_tokens / run(model, batch, short, 1 + new_tokens)[1])
    unread = model.get_input_embeddings().weight.nbytes
    return Speed(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch=batch,
        prefill=statistics.median(prefill),
        decode=statistics.median(decode),
        batch_decode=statistics.median(batch_decode),
        bytes_per_token=sum(x.nbytes for x in model.parameters()) - unread,
        bandwidth=None,
    )


def load_transformers(folder: Path, dtype: str) -> transformers.PhiForCausalLM:
    """Its class over the tensors that ours reads from a checkpoint of any layout."""
    ours = PhiForCausalLM.from_pretrained(folder, dtype=dtype)
    config = transformers.PhiConfig(**ours.config.to_dict())
    with torch.device("meta"):
        theirs = transformers.PhiForCausalLM(config)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    rotary = theirs.model.rotary_emb
    theirs.model.rotary_emb = type(rotary)(config)  # its tables are no part of the state
    return theirs.eval()


@torch.inference_mode()
def run(
    model: transformers.PhiForCausalLM, batch: int, length: int, new_tokens: int
) -> tuple[float, float]:
    """Seconds of a batch of prompts, and of the greedy steps after its first tokens."""
    ids = torch.randint(model.config.vocab_size, (batch, length))
    begin = time.perf_counter()
    output = model(ids, use_cache=True, logits_to_keep=1)
    middle = time.perf_counter()
    for _ in range(new_tokens - 1):
        output = model(_choose(output.logits), past_key_values=output.past_key_values)
    return middle - begin, time.perf_counter() - middle


def _choose(logits: Tensor) -> Tensor:
    return logits[:, -1:].argmax(dim=-1)
