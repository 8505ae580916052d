"""Draft tokens and reused prefixes: what they save, on a checkpoint of any size.

Requests go one after the other, greedily, over beginnings of Python's own library; what is timed is
whole requests, prompt included. Acceptance says as much about model and text as about the engine:
random weights, such as the full-size benchmark checkpoint has, soon repeat themselves, so that
their figures are not those of a trained model. Time to the first token is measured with and without
all but the last tokens of the prompt in the cache.

    python benchmarks/speculative.py [--model tiny] [--draft SMALLER_MODEL]
"""

import argparse
import bisect
import csv
import heapq
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from measure import interleave, median, write_result

import phiscope
from phiscope.generation.completion import Completion

SOURCES = (textwrap, heapq, bisect, csv)
NEW_PART = 8
"""Tokens of a prompt that no earlier one began with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="default: tiny")
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--draft", help="a smaller model with the same tokens")
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="speculative")
    options = parser.parse_args()
    phi = phiscope.load(options.model, mode=options.mode)
    figures = {
        "model": options.model,
        "mode": phi.mode.name,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "drafting": measure_drafting(phi, options),
        "first_token": measure_first_token(phi, options),
    }
    write_result(options.name, figures)


def measure_drafting(phi: phiscope.Phi, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens/s of each way to draft, and the share of draft tokens that were right."""
    phi.engine.reuses_prefixes = False
    prompts = [read_source(phi, module, options.prompt_tokens) for module in SOURCES]
    ways = dict(list_ways(options))
    found: dict[str, list[Completion]] = {}

    def run(name: str) -> None:
        found[name] = [complete(phi, prompt, options, ways[name]) for prompt in prompts]

    tasks: dict[str, Callable[[], object]] = {name: partial(run, name) for name in ways}
    seconds = interleave(tasks, repeats=options.repeats)
    return [
        {
            "way": name,
            "tokens_per_second": round(count_tokens(found[name]) / median(seconds[name]), 1),
            "accepted": share_accepted(found[name]),
            "completions_as_plain": count_equal(found[name], found["plain"]),
            "completions": len(prompts),
        }
        for name in ways
    ]


def list_ways(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of ways to draft, and what `generate` is given for them."""
    yield "plain", {}
    drafts: dict[str, Any] = {"prompt-lookup": "prompt-lookup"}
    if options.draft:
        drafts["draft model"] = phiscope.load(options.draft, mode=options.mode)
    for name, draft in drafts.items():
        for count in options.draft_tokens:
            yield f"{name}, {count} tokens", {"draft": draft, "draft_tokens": count}


def complete(
    phi: phiscope.Phi, prompt: Sequence[int], options: argparse.Namespace, way: dict[str, Any]
) -> Completion:
    completion = phi.generate(prompt, max_new_tokens=options.new_tokens, ignore_eos=True, **way)
    assert isinstance(completion, Completion)
    return completion


def measure_first_token(phi: phiscope.Phi, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to the first token of a prompt that is new, and of one of which the end is new."""
    phi.engine.reuses_prefixes = True
    prompt = read_source(phi, SOURCES[0], options.prompt_tokens)
    endings = iter(range(10**6))
    reused: dict[str, int] = {}

    def begin(name: str) -> None:
        if name == "new":
            phi.engine.forget_prefixes()
        ending = [next(endings) % 200] * NEW_PART
        completion = phi.generate([*prompt[:-NEW_PART], *ending], max_new_tokens=1)
        reused[name] = completion.num_reused

    tasks = {name: partial(begin, name) for name in ("new", "begun before")}
    seconds = interleave(tasks, repeats=4 * options.repeats)
    return {
        name: {"milliseconds": round(1e3 * median(seconds[name]), 2), "reused_tokens": count}
        for name, count in reused.items()
    }


def read_source(phi: phiscope.Phi, module: object, length: int) -> list[int]:
    """The first tokens of a module's source."""
    assert inspect.ismodule(module)
    return phi.tokenizer.encode(inspect.getsource(module))[:length]


def count_tokens(completions: Sequence[Completion]) -> int:
    return sum(len(completion.token_ids) for completion in completions)


def count_equal(some: Sequence[Completion], others: Sequence[Completion]) -> int:
    """How many completions have the same tokens; rounding may part two that are nearly tied."""
    return sum(a.token_ids == b.token_ids for a, b in zip(some, others, strict=True))


def share_accepted(completions: Sequence[Completion]) -> float | None:
    """Of all draft tokens, those that are in a completion; None where there are none."""
    drafted = sum(completion.num_drafted for completion in completions)
    accepted = sum(completion.num_accepted for completion in completions)
    return round(accepted / drafted, 3) if drafted else None


if __name__ == "__main__":
    main()
