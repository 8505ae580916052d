"""`phiscope generate`: complete a prompt, piece by piece as the text becomes final."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from phiscope.cli.arguments import (
    add_model_arguments,
    load_model,
    natural,
    positive,
    text_argument,
)
from phiscope.cli.command import Command
from phiscope.cli.exits import OK, UsageError, usage_errors
from phiscope.cli.printing import emit, emit_json, emit_piece, emit_table, shows_progress
from phiscope.cli.writing import check_name, write_tensors
from phiscope.prompts import FORMATS

if TYPE_CHECKING:
    from phiscope.api import Phi
    from phiscope.generation.completion import Completion
    from phiscope.generation.logprobs import TokenLogprob

_OPTIONS = (
    ("--max-new-tokens", natural, "N", "tokens to generate at most (default: 128)"),
    ("--temperature", float, "T", "0 takes the likeliest token (default: 0)"),
    ("--top-k", positive, "K", "sample among the K likeliest tokens"),
    ("--top-p", float, "P", "sample among the fewest tokens that have probability P together"),
    ("--min-p", float, "P", "sample among tokens at least P times as likely as the likeliest"),
    ("--repetition-penalty", float, "X", "divide the logits of tokens seen before (default: 1)"),
    ("--presence-penalty", float, "X", "take X off each token the completion has (default: 0)"),
    ("--frequency-penalty", float, "X", "take X off for each time it has it (default: 0)"),
    ("--seed", natural, "S", "repeat the same samples"),
    ("--n", positive, "N", "completions to sample (default: 1)"),
    ("--draft-tokens", positive, "N", "tokens to draft for each step, 4 unless given"),
    ("--logprobs", natural, "K", "also give log-probabilities, with the K likeliest tokens"),
)
"""Flag, type, placeholder, help; the name is the library's, and so is the default."""


def add_sampling_arguments(parser: ArgumentParser, *, leave_out: Sequence[str] = ()) -> None:
    """The options of `GenerationOptions` that commands share."""
    group = parser.add_argument_group("generation")
    for flag, kind, placeholder, text in _OPTIONS:
        if flag not in leave_out:
            group.add_argument(flag, type=kind, metavar=placeholder, help=text)
    group.add_argument(
        "--draft", metavar="NAME",
        help="guess tokens ahead: prompt-lookup, or a smaller model with the same tokens",
    )  # fmt: skip


def sampling_options(arguments: Namespace) -> dict[str, Any]:
    """What was given of them; the rest has the library's defaults."""
    names = [flag.removeprefix("--").replace("-", "_") for flag, *_ in _OPTIONS]
    given = {name: getattr(arguments, name, None) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def draft_setting(arguments: Namespace) -> dict[str, Any]:
    """The draft that `--draft` names; a model is loaded in the mode of the one it drafts for."""
    from phiscope.api import load
    from phiscope.generation.drafting import PROMPT_LOOKUP

    if arguments.draft in (None, PROMPT_LOOKUP):
        return {"draft": arguments.draft}
    return {"draft": load(arguments.draft, mode=arguments.mode, progress=shows_progress())}


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "prompt", type=text_argument, metavar="PROMPT", help="the prompt (-: read it from stdin)"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="put the prompt in this format and stop as it does"
    )
    add_sampling_arguments(parser)
    group = parser.add_argument_group("text")
    group.add_argument(
        "--stop", action="append", default=[], type=text_argument, metavar="TEXT",
        help="end at this text; may be given again",
    )  # fmt: skip
    group.add_argument("--echo", action="store_true", help="print the prompt before the answer")
    group = parser.add_argument_group("hidden states")
    group.add_argument(
        "--states", action="append", default=[], metavar="POINT",
        help="keep the activations of this point for every token; needs --out",
    )  # fmt: skip
    group.add_argument("--out", metavar="FILE", help="write them here (.safetensors)")
    add_model_arguments(parser)


def _run(arguments: Namespace) -> int:
    _check_states(arguments)
    prompt = _read_prompt(arguments.prompt)
    settings = sampling_options(arguments) | {"stop": tuple(arguments.stop), "echo": arguments.echo}
    phi = load_model(arguments, mapped=True)
    settings |= draft_setting(arguments)
    if _is_plain(arguments):
        _stream(phi, prompt, arguments.format, settings)
        return OK
    with usage_errors():
        completions = phi.generate(
            prompt,
            format=arguments.format,
            points=arguments.states,
            progress=shows_progress(),
            **settings,
        )
    completions = completions if isinstance(completions, list) else [completions]
    if arguments.out:
        _write_states(completions, arguments.out)
    if arguments.json:
        emit_json(_as_json(phi, arguments, completions))
    else:
        _print(phi, completions)
    return OK


def _is_plain(arguments: Namespace) -> bool:
    """Whether the text alone is wanted, and can be streamed."""
    rich = arguments.json or arguments.states or arguments.logprobs is not None
    return not rich and arguments.n in {None, 1}


def _stream(phi: "Phi", prompt: str, format: str | None, settings: dict[str, Any]) -> None:
    with usage_errors():
        pieces = phi.stream(prompt, format=format, **settings)
    for piece in pieces:
        emit_piece(piece)
    emit_piece("\n")


def _print(phi: "Phi", completions: Sequence["Completion"]) -> None:
    for completion in completions:
        if len(completions) > 1:
            emit(f"==> {completion.index + 1} of {len(completions)} <==")
        emit(completion.text)
        scores = [*(completion.prompt_logprobs or ()), *(completion.logprobs or ())]
        if scores:
            emit_table(("token", "logprob", "likeliest"), _logprob_rows(phi, scores))


def _logprob_rows(phi: "Phi", scores: Iterable["TokenLogprob"]) -> Iterator[tuple[str, ...]]:
    for score in scores:
        token, logprob, top = _describe_token(phi, score)
        shown = "-" if logprob is None else f"{logprob:.3f}"
        yield repr(token), shown, "  ".join(f"{other!r} {value:.3f}" for other, value in top)


def _describe_token(
    phi: "Phi", score: "TokenLogprob"
) -> tuple[str, float | None, list[tuple[str, float]]]:
    top = [(phi.tokenizer.decode([token_id]), logprob) for token_id, logprob in score.top]
    return phi.tokenizer.decode([score.token_id]), score.logprob, top


def _write_states(completions: Sequence["Completion"], out: str) -> None:
    """One tensor for each completion and point; of several completions, each name has its number.

    Beside them lies `token_ids`, whose i-th entry belongs to the i-th row.
    """
    import torch

    tensors = {}
    for completion in completions:
        prefix = f"{completion.index}." if len(completions) > 1 else ""
        ids = [label.token_id for label in completion.labels]
        tensors[f"{prefix}token_ids"] = torch.tensor(ids)
        tensors |= {f"{prefix}{name}": rows for name, rows in completion.states.items()}
    write_tensors(out, tensors)


def _as_json(
    phi: "Phi", arguments: Namespace, completions: Sequence["Completion"]
) -> dict[str, Any]:
    return {
        "model": arguments.model,
        "mode": phi.mode.name,
        "completions": [_completion_as_json(phi, completion) for completion in completions],
    }


def _completion_as_json(phi: "Phi", completion: "Completion") -> dict[str, Any]:
    found: dict[str, Any] = {
        "index": completion.index,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }
    if completion.num_drafted:
        found |= {
            "num_drafted": completion.num_drafted,
            "num_accepted": completion.num_accepted,
        }
    for name in ("prompt_logprobs", "logprobs"):
        scores = getattr(completion, name)
        if scores is not None:
            found[name] = [_score_as_json(phi, score) for score in scores]
    if completion.states:
        found["states"] = {name: list(rows.shape) for name, rows in completion.states.items()}
    return found


def _score_as_json(phi: "Phi", score: "TokenLogprob") -> dict[str, Any]:
    token, logprob, top = _describe_token(phi, score)
    return {
        "token": token,
        "token_id": score.token_id,
        "logprob": logprob,
        "top": [{"token": other, "logprob": value} for other, value in top],
    }


def _check_states(arguments: Namespace) -> None:
    if bool(arguments.states) != bool(arguments.out):
        raise UsageError("--states and --out belong together: what to keep, and where to write it")
    check_name(arguments.out, ".safetensors")


def _read_prompt(prompt: str) -> str:
    if prompt != "-":
        return prompt
    if sys.stdin is None:
        raise UsageError("the prompt was to come from stdin, and stdin is closed")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt on stdin is not valid UTF-8: {error}") from error


GENERATE = Command(
    name="generate",
    summary="complete a prompt",
    usage="PROMPT [options]",
    add_arguments=_add_arguments,
    run=_run,
)
