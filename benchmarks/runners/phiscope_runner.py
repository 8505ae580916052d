"""Phiscope's runner: real steps of its engine, in one mode.

python phiscope_runner.py NAME THREADS CHECKPOINT MODE
"""

import sys
from collections.abc import Iterator, Sequence

import torch
from runner import Prompt, Timed, serve_runners
from torch import Tensor, nn

import phiscope
from phiscope.cache import KVCache
from phiscope.generation.options import GenerationOptions
from phiscope.generation.request import Request


class PhiscopeRunner:
    def __init__(self, folder: str, mode: str, num_threads: int) -> None:
        self._phi = phiscope.load(folder, mode=mode, num_threads=num_threads)
        self._phi.engine.reuses_prefixes = False  # no prompt comes twice: nor does a slot keep one
        config, dtype = self._phi.config, self._phi.mode.compute_dtype
        self.weight_bytes = count_step_bytes(self._phi.model)
        self.cache_bytes = KVCache.count_slot_bytes(config, 1, dtype)

    def prefill(self, prompt: Prompt) -> Timed:
        timed = Timed()
        with timed.clock():
            request = self._submit(prompt, 1)
            self._phi.engine.run()
        timed.token_ids = [cut_short(request)]
        return timed

    def decode(self, prompts: Sequence[Prompt], num_steps: int) -> Timed:
        """The prompts may take several steps, so that the first ones are ahead by some tokens."""
        timed = Timed()
        count = num_steps + 1
        requests = [self._submit(prompt, count + len(prompts)) for prompt in prompts]
        while not all(request.num_new_tokens for request in requests):
            self._phi.engine.step()
        before = [request.num_new_tokens for request in requests]
        with timed.clock():
            for _ in range(num_steps):
                self._phi.engine.step()
        timed.token_ids = [cut_short(request)[:count] for request in requests]
        steps = [r.num_new_tokens - n for r, n in zip(requests, before, strict=True)]
        assert steps == [num_steps] * len(prompts), "every step has a token of every prompt"
        return timed

    def _submit(self, prompt: Prompt, num_tokens: int) -> Request:
        options = GenerationOptions(max_new_tokens=num_tokens, ignore_eos=True)
        return self._phi.engine.submit(prompt, options)


def cut_short(request: Request) -> list[int]:
    """The tokens of a request so far, after which it goes no further; an error is raised."""
    request.cancel()
    (completion,) = request.result()
    return list(completion.token_ids)


def count_step_bytes(model: nn.Module) -> int:
    """Bytes of all tensors that modules hold, packed ones too, but the embeddings'."""
    modules = [module for module in model.modules() if not isinstance(module, nn.Embedding)]
    tensors = {id(x): x for module in modules for x in list_tensors(module)}
    return sum(x.numel() * x.element_size() for x in tensors.values())


def list_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)
    yield from (x for x in vars(module).values() if isinstance(x, Tensor))


def main() -> None:
    name, num_threads, folder, mode = sys.argv[1:]
    serve_runners(
        lambda: {name: PhiscopeRunner(folder, mode, int(num_threads))},
        {"torch": torch.__version__, "phiscope": phiscope.__version__},
    )


if __name__ == "__main__":
    main()
