"""The OpenVINO runners: both pipelines of OpenVINO GenAI on a model exported by optimum-intel.

"stateful" is the pipeline with one state of keys and values for a whole batch, "paged" the one with
continuous batching and a paged cache. The cache is in 8 bit and activations are quantised in
groups unless one asks otherwise, and here nobody does.

    python openvino_runner.py NAME THREADS FOLDER BACKEND
"""

import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from runner import Prompt, Runner, Timed, serve_runners

MODEL = "openvino_model.xml"
MAX_TOKENS = 8192
"""Of one step of the paged pipeline; its own 256 would split the prompts."""


class StatefulRunner:
    """Steps are timed by the pipeline's own record of when each token came."""

    def __init__(self, folder: Path, num_threads: int) -> None:
        self._pipeline = openvino_genai.LLMPipeline(
            folder, "CPU", INFERENCE_NUM_THREADS=num_threads, ATTENTION_BACKEND="SDPA"
        )
        self.weight_bytes, self.cache_bytes = read_sizes(folder / MODEL)

    def prefill(self, prompt: Prompt) -> Timed:
        timed = Timed()
        with timed.clock():
            results = self._generate([prompt], 1)
        timed.token_ids = [list(tokens) for tokens in results.tokens]
        return timed

    def decode(self, prompts: Sequence[Prompt], num_steps: int) -> Timed:
        results = self._generate(prompts, num_steps + 1)
        milliseconds = results.perf_metrics.raw_metrics.m_new_token_times
        assert len(milliseconds) == num_steps + 1, "one time for each step"
        seconds = (milliseconds[-1] - milliseconds[0]) / 1e3
        return Timed([list(tokens) for tokens in results.tokens], seconds)

    def _generate(self, prompts: Sequence[Prompt], num_tokens: int) -> Any:
        return self._pipeline.generate(make_tensor(prompts), make_config(num_tokens))


class PagedRunner:
    """Its steps are called one by one."""

    def __init__(self, folder: Path, num_threads: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = MAX_TOKENS
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": num_threads}
        )
        self._numbers = count()
        self.weight_bytes, self.cache_bytes = read_sizes(folder / MODEL)

    def prefill(self, prompt: Prompt) -> Timed:
        timed = Timed()
        with timed.clock():
            handle = self._add(prompt, 1)
            self._pipeline.step()
        timed.token_ids = [read_tokens(handle)]
        return timed

    def decode(self, prompts: Sequence[Prompt], num_steps: int) -> Timed:
        timed = Timed()
        handles = [self._add(prompt, num_steps + 1) for prompt in prompts]
        self._pipeline.step()
        first = [read_tokens(handle) for handle in handles]
        assert all(len(tokens) == 1 for tokens in first), "one step for all prompts"
        with timed.clock():
            for _ in range(num_steps):
                self._pipeline.step()
        rest = [read_tokens(handle) for handle in handles]
        timed.token_ids = [a + b for a, b in zip(first, rest, strict=True)]
        assert not self._pipeline.has_non_finished_requests(), "all steps are done"
        return timed

    def _add(self, prompt: Prompt, num_tokens: int) -> Any:
        return self._pipeline.add_request(
            next(self._numbers), make_tensor([prompt]), make_config(num_tokens)
        )


BACKENDS: dict[str, Callable[[Path, int], Runner]] = {
    "stateful": StatefulRunner,
    "paged": PagedRunner,
}


def make_tensor(prompts: Sequence[Prompt]) -> openvino.Tensor:
    return openvino.Tensor(np.array(prompts, dtype=np.int64))


def make_config(num_tokens: int) -> Any:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = num_tokens, True, False
    return config


def read_tokens(handle: Any) -> list[int]:
    """What a request has given since it was read last."""
    tokens: list[int] = []
    while handle.can_read():
        (output,) = handle.read().values()
        tokens += output.generated_ids
    return tokens


def read_sizes(path: Path) -> tuple[int, int]:
    """Bytes of all constants but the embeddings', and those of one token in the cache."""
    core = openvino.Core()
    model = core.read_model(path)
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    weights = [op for op in constants if "embed_tokens" not in op.get_friendly_name()]
    shapes = [x.info.data_shape for x in model.get_variables()]
    numbers = sum(shape[1].get_length() * shape[3].get_length() for shape in shapes)
    width = core.get_property("CPU", "KV_CACHE_PRECISION").size
    return sum(op.get_byte_size() for op in weights), numbers * width


def main() -> None:
    name, num_threads, folder, backend = sys.argv[1:]
    serve_runners(
        lambda: {name: BACKENDS[backend](Path(folder), int(num_threads))},
        {"openvino-genai": openvino_genai.__version__},
    )


if __name__ == "__main__":
    main()
