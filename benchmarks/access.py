"""What access costs: decode and prefill bare, and with capture or steering, in turn.

Captured are one point, and all hidden states: rows of every token while decoding, one mean of each
text in a prefill. Steering adds a vector at one layer. All decode with as many forwards: to keep
rows the last token is run as well, so those that keep none choose one token more.

    python benchmarks/access.py CHECKPOINT --modes int8-cpu bf16-fp32-cpu [--repeats 9]
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from measure import interleave, median, write_result

import phiscope

LENGTH = 512
PROMPT = 16
NEW_TOKENS = 25
ONE = "resid_post.16"

ALL = "embeddings, resid_post.[:], final_norm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--modes", nargs="+", default=["int8-cpu", "bf16-fp32-cpu"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", default="access")
    options = parser.parse_args()
    figures = {}
    for mode in options.modes:
        phi = phiscope.load(options.checkpoint, mode=mode, num_threads=options.threads)
        phi.engine.reuses_prefixes = False
        figures[mode] = {
            "decode": compare(make_decodes(phi), options.repeats),
            "prefill": compare(make_prefills(phi), options.repeats),
        }
        print(mode, figures[mode], flush=True)
        del phi
    settings = {"prefill_tokens": LENGTH, "prompt_tokens": PROMPT, "new_tokens": NEW_TOKENS}
    write_result(options.name, settings | {"modes": figures})


def compare(tasks: dict[str, Callable[[], object]], repeats: int) -> dict:
    """Median seconds, and the median over turns of what each takes over the bare one."""
    seconds = interleave(tasks, repeats=repeats)
    over = {
        name: median([x / bare for x, bare in zip(times, seconds["bare"], strict=True)])
        for name, times in seconds.items()
    }
    return {
        "seconds": {name: round(median(times), 4) for name, times in seconds.items()},
        "over_bare": {name: round(ratio, 4) for name, ratio in over.items()},
    }


def make_decodes(phi: phiscope.Phi) -> dict[str, Callable[[], object]]:
    prompts = draw(phi, PROMPT)

    def generate(points: str = "") -> None:
        count = NEW_TOKENS + (not points)
        phi.generate(next(prompts), max_new_tokens=count, ignore_eos=True, points=points or ())

    def steered() -> None:
        with steer(phi):
            generate()

    return {
        "bare": generate,
        "one_point": lambda: generate(ONE),
        "all_states": lambda: generate(ALL),
        "steered": steered,
    }


def make_prefills(phi: phiscope.Phi) -> dict[str, Callable[[], object]]:
    """To the last block; the bare one keeps nothing but a mean of what comes after it."""
    prompts = draw(phi, LENGTH)

    def capture(points: str, is_steered: bool = False) -> None:
        with steer(phi) if is_steered else nullcontext():
            phi.capture([next(prompts)], points, pool="mean")

    return {
        "bare": lambda: capture("final_norm"),
        "one_point": lambda: capture(f"{ONE}, final_norm"),
        "all_states": lambda: capture(ALL),
        "steered": lambda: capture("final_norm", is_steered=True),
    }


def steer(phi: phiscope.Phi):
    return phi.steer({ONE: torch.full((phi.config.hidden_size,), 1e-3)})


def draw(phi: phiscope.Phi, length: int) -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randint(phi.config.vocab_size, (length,), generator=generator).tolist()


if __name__ == "__main__":
    main()
