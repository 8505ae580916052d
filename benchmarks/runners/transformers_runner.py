"""The transformers runners: one model, three ways to run it, by plain greedy loops.

python transformers_runner.py NAME THREADS CHECKPOINT DTYPE VARIANT ...
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from runner import Prompt, Runner, Timed, serve_runners
from source import Source, load_source
from torch import Tensor

NUM_PLACES = 640
"""Of the static caches: a prompt of 512 tokens and some more."""


class DynamicRunner:
    """The attention of that name and a cache that grows."""

    def __init__(self, source: Source, attention: str) -> None:
        self._model = source.make_shell()
        self._model.set_attn_implementation(attention)
        self.weight_bytes = count_step_bytes(self._model)
        self.cache_bytes = count_cache_bytes(self._model)

    @torch.inference_mode()
    def prefill(self, prompt: Prompt) -> Timed:
        timed = Timed()
        ids = torch.tensor([prompt])
        with timed.clock():
            timed.token_ids = self._run(ids, self._make_cache()).tolist()
        return timed

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Prompt], num_steps: int) -> Timed:
        timed, cache = Timed(), self._make_cache()
        chosen = [self._run(torch.tensor(prompts), cache)]
        with timed.clock():
            for _ in range(num_steps):
                chosen.append(self._run(chosen[-1], cache))
        timed.token_ids = torch.cat(chosen, dim=1).tolist()
        return timed

    def _make_cache(self) -> transformers.Cache:
        return transformers.DynamicCache(config=self._model.config)

    def _run(self, ids: Tensor, cache: transformers.Cache) -> Tensor:
        """(B, T) to (B, 1), the next tokens."""
        output = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits.argmax(dim=-1)


class StaticRunner:
    """A static cache and compiled forwards, of a prompt and of a step.

    The prompts before steps are run uncompiled: they are not timed, and each length would be
    compiled anew.
    """

    def __init__(self, source: Source) -> None:
        self._model = source.make_shell()
        self._model.set_attn_implementation("sdpa")
        self._compiled = torch.compile(self._model.forward, dynamic=False)
        self.weight_bytes = count_step_bytes(self._model)
        self.cache_bytes = count_cache_bytes(self._model)

    @torch.inference_mode()
    def prefill(self, prompt: Prompt) -> Timed:
        timed, cache = Timed(), self._make_cache(1)
        ids = torch.tensor([prompt])
        with timed.clock():
            timed.token_ids = self._run(self._compiled, ids, 0, cache).tolist()
        return timed

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Prompt], num_steps: int) -> Timed:
        timed, cache = Timed(), self._make_cache(len(prompts))
        start = len(prompts[0])
        chosen = [self._run(self._model, torch.tensor(prompts), 0, cache)]
        with timed.clock():
            for place in range(start, start + num_steps):
                chosen.append(self._run(self._compiled, chosen[-1], place, cache))
        timed.token_ids = torch.cat(chosen, dim=1).tolist()
        return timed

    def _make_cache(self, num_sequences: int) -> transformers.Cache:
        config = self._model.config
        cache = transformers.StaticCache(config=config, max_cache_len=NUM_PLACES)
        cache.early_initialization(
            batch_size=num_sequences,
            num_heads=config.num_key_value_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            dtype=self._model.dtype,
            device=self._model.device,
        )
        return cache

    def _run(
        self, forward: Callable[..., Any], ids: Tensor, start: int, cache: transformers.Cache
    ) -> Tensor:
        """(B, T) at places from `start` on to (B, 1), the next tokens."""
        places = torch.arange(start, start + ids.shape[1])[None]
        output = forward(
            ids, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return output.logits.argmax(dim=-1)


VARIANTS: dict[str, Callable[[Source], Runner]] = {
    "sdpa": lambda source: DynamicRunner(source, "sdpa"),
    "eager": lambda source: DynamicRunner(source, "eager"),
    "static": StaticRunner,
}


def count_step_bytes(model: transformers.PhiForCausalLM) -> int:
    tables = {id(model.get_input_embeddings().weight)}
    weights = [x for x in model.parameters() if id(x) not in tables]
    return sum(x.numel() * x.element_size() for x in weights)


def count_cache_bytes(model: transformers.PhiForCausalLM) -> int:
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    return numbers * model.dtype.itemsize


def main() -> None:
    name, num_threads, folder, dtype, *variants = sys.argv[1:]
    torch.set_num_threads(int(num_threads))
    transformers.logging.set_verbosity_error()

    def load() -> dict[str, Runner]:
        source = load_source(Path(folder), getattr(torch, dtype), "cpu")
        return {f"{name} {variant}": VARIANTS[variant](source) for variant in variants}

    serve_runners(load, {"torch": torch.__version__, "transformers": transformers.__version__})


if __name__ == "__main__":
    main()
