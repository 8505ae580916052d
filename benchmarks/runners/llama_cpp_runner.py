"""The llama.cpp runner: its C interface as llama-cpp-python hands it out, on a GGUF file.

A batch has one token of each sequence; every number of sequences has a context of its own, whose
cache is not shared between sequences.

    python llama_cpp_runner.py NAME THREADS FILE
"""

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import gguf
import llama_cpp
import numpy as np
from runner import Prompt, Timed, serve_runners

NUM_PLACES = {1: 640}
FEWER_PLACES = 256
"""Tokens of each sequence where there are several."""


class LlamaRunner:
    def __init__(self, path: str, num_threads: int) -> None:
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {path}")
        self._num_threads = num_threads
        self._num_tokens = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )
        self._contexts: dict[int, Any] = {}
        self.weight_bytes = count_step_bytes(path)
        layers = llama_cpp.llama_model_n_layer(self._model)
        self.cache_bytes = 2 * 2 * layers * llama_cpp.llama_model_n_embd(self._model)

    def prefill(self, prompt: Prompt) -> Timed:
        timed, context = Timed(), self._open(1)
        with timed.clock():
            timed.token_ids = [self._run(context, [prompt], 0)]
        return timed

    def decode(self, prompts: Sequence[Prompt], num_steps: int) -> Timed:
        timed, context = Timed(), self._open(len(prompts))
        chosen = [self._run(context, prompts, 0)]
        start = len(prompts[0])
        with timed.clock():
            for place in range(start, start + num_steps):
                chosen.append(self._run(context, [[x] for x in chosen[-1]], place))
        timed.token_ids = [list(tokens) for tokens in zip(*chosen, strict=True)]
        return timed

    def _open(self, num_sequences: int) -> Any:
        """The context for that many sequences, empty."""
        if num_sequences not in self._contexts:
            self._contexts[num_sequences] = self._make_context(num_sequences)
        context = self._contexts[num_sequences]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        return context

    def _make_context(self, num_sequences: int) -> Any:
        parameters = llama_cpp.llama_context_default_params()
        places = NUM_PLACES.get(num_sequences, FEWER_PLACES)
        parameters.n_ctx = places * num_sequences
        parameters.n_batch = parameters.n_ubatch = parameters.n_ctx
        parameters.n_seq_max = num_sequences
        parameters.n_threads = parameters.n_threads_batch = self._num_threads
        return llama_cpp.llama_init_from_model(self._model, parameters)

    def _run(self, context: Any, rows: Sequence[Prompt], start: int) -> list[int]:
        """Run the tokens of each sequence from place `start` on and choose the ones after them."""
        count = sum(len(row) for row in rows)
        batch = llama_cpp.llama_batch_init(count, 0, 1)
        ends = fill_batch(batch, rows, start)
        status = llama_cpp.llama_decode(context, batch)
        llama_cpp.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode gives {status}")
        return [self._choose(context, end) for end in ends]

    def _choose(self, context: Any, index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(context, index)
        return int(np.ctypeslib.as_array(logits, (self._num_tokens,)).argmax())


def fill_batch(batch: Any, rows: Sequence[Prompt], start: int) -> list[int]:
    """Put the rows one after the other, and give the index of each one's last token."""
    index, ends = 0, []
    for sequence, row in enumerate(rows):
        for place, token in enumerate(row, start):
            batch.token[index], batch.pos[index] = token, place
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = place == start + len(row) - 1
            index += 1
        ends.append(index - 1)
    batch.n_tokens = index
    return ends


def count_step_bytes(path: str) -> int:
    tensors = gguf.GGUFReader(path).tensors
    return sum(int(x.n_bytes) for x in tensors if x.name != "token_embd.weight")


@llama_cpp.llama_log_callback
def say_nothing(level: int, text: bytes, data: object) -> None:
    """Hundreds of lines otherwise."""


def main() -> None:
    name, num_threads, path = sys.argv[1:]
    llama_cpp.llama_log_set(say_nothing, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    serve_runners(
        lambda: {name: LlamaRunner(path, int(num_threads))},
        {"llama-cpp-python": llama_cpp.__version__},
    )


if __name__ == "__main__":
    main()
