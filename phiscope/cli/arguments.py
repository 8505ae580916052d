"""Options that several commands share, and the types of their values."""

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING

from phiscope.cli.printing import shows_progress

if TYPE_CHECKING:
    from phiscope.api import Phi

DEFAULT_MODEL = "tiny"
POOLING_NAMES = ("mean", "last", "weighted_mean", "max", "first")
"""Those of `phiscope.activations.pooling`, written out so that `--help` needs no torch."""
MODE_NAMES = (
    *("auto", "fp16-flash", "fp16", "bf16-flash", "bf16", "fp32", "fp16-flex", "fp32-flex"),
    *("fp32-cpu", "bf16-cpu", "bf16-fp32-cpu"),
)
"""Those of `phiscope.runtime`."""
SMALL_MODEL = 50_000_000
"""Parameters below which several threads wait for one another longer than they work."""

_THREADS_HELP = "CPU threads (default: 1 for a model below 50 million parameters, else all cores)"


def add_model_arguments(parser: ArgumentParser) -> None:
    """Which model to load, and how."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME",
        help="tiny or nano (embedded), a folder, or a hub id such as microsoft/phi-2 "
        f"(default: {DEFAULT_MODEL})",
    )
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    group.add_argument(
        "--mode",
        default="auto",
        metavar="MODE",
        choices=MODE_NAMES,
        help=f"{', '.join(MODE_NAMES)} (default: auto; `phiscope doctor` tells which that is)",
    )
    group.add_argument("--threads", type=positive, metavar="T", help=_THREADS_HELP)


def load_model(arguments: Namespace, *, hidden_states: list[int] | None = None) -> "Phi":
    """Load the model that the options name; with `hidden_states`, only the blocks these need."""
    import torch

    from phiscope.api import load
    from phiscope.checkpoint.hub import resolve
    from phiscope.config import read_config

    folder = resolve(arguments.model, revision=arguments.revision)
    highest = max(hidden_states or [0])
    is_part = hidden_states is not None and 0 <= highest < read_config(folder).num_hidden_layers
    phi = load(
        folder,
        mode=arguments.mode,
        layers=highest if is_part else None,
        num_threads=arguments.threads,
        progress=shows_progress(),
    )
    if arguments.threads is None and phi.config.num_parameters < SMALL_MODEL:
        torch.set_num_threads(1)
    return phi


def positive(text: str) -> int:
    """An integer of at least 1."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """An integer of at least 0."""
    return _at_least(0, text)


def text_argument(text: str) -> str:
    """Text that is valid Unicode; the shell may hand over bytes that are not."""
    try:
        return as_unicode(text)
    except UnicodeError as error:
        raise ArgumentTypeError("not valid UTF-8") from error


def as_unicode(text: str) -> str:
    """Read as UTF-8 what Python, in a locale that is not, took in as bytes without a meaning.

    Raises `UnicodeError` for bytes that are no UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text).decode()
    return text


def layer_list(text: str) -> list[int]:
    """Comma-separated layer numbers: `0,8,16`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no list of numbers such as 0,8,16") from error


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no whole number") from error
    if value < least:
        raise ArgumentTypeError(f"must be at least {least}, got {value}")
    return value
