"""The CTranslate2 runner: its generator in int8, whose steps are told by a callback.

python ctranslate2_runner.py NAME THREADS FOLDER
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2
from runner import Prompt, Timed, serve_runners


class CTranslate2Runner:
    def __init__(self, folder: Path, num_threads: int) -> None:
        self._generator = ctranslate2.Generator(
            str(folder), compute_type="int8", intra_threads=num_threads
        )
        sizes = json.loads((folder / "sizes.json").read_text())
        self.weight_bytes, self.cache_bytes = sizes["weight_bytes"], sizes["cache_bytes"]
        self._tokens: list[str] = json.loads((folder / "vocabulary.json").read_text())

    def prefill(self, prompt: Prompt) -> Timed:
        timed = Timed()
        with timed.clock():
            timed.token_ids = self._generate([prompt], 1)
        return timed

    def decode(self, prompts: Sequence[Prompt], num_steps: int) -> Timed:
        """From the first tokens after the prompts to the last ones."""
        times: dict[int, float] = {}

        def note(step: Any) -> bool:
            times[step.step] = time.perf_counter()
            return False

        token_ids = self._generate(prompts, num_steps + 1, callback=note)
        assert len(times) == num_steps + 1, "one time for each step"
        return Timed(token_ids, times[max(times)] - times[min(times)])

    def _generate(self, prompts: Sequence[Prompt], count: int, **more: Any) -> list[list[int]]:
        results = self._generator.generate_batch(
            [[self._tokens[token] for token in prompt] for prompt in prompts],
            max_length=count,
            min_length=count,
            include_prompt_in_result=False,
            **more,
        )
        return [list(result.sequences_ids[0]) for result in results]


def main() -> None:
    name, num_threads, folder = sys.argv[1:]
    serve_runners(
        lambda: {name: CTranslate2Runner(Path(folder), int(num_threads))},
        {"ctranslate2": ctranslate2.__version__},
    )


if __name__ == "__main__":
    main()
