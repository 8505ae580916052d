"""Options that several commands share, and the types of their values."""

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from phiscope.cli.printing import shows_progress

if TYPE_CHECKING:
    from phiscope.activations.points import Point
    from phiscope.api import Phi

DEFAULT_MODEL = "tiny"
POOLING_NAMES = ("mean", "last", "weighted_mean", "max", "first")
"""Those of `phiscope.activations.pooling`, written out so that `--help` needs no torch."""
MODE_NAMES = (
    *("auto", "fp16-flash", "fp16", "bf16-flash", "bf16", "fp32", "int8", "int4"),
    *("fp16-flex", "fp32-flex"),
    *(
        "fp32-cpu",
        "bf16-cpu",
        "bf16-fp32-cpu",
        "fp16-fp32-cpu",
        "int8-cpu",
        "int4-cpu",
        "int8-fp32-cpu",
    ),
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


def find_model(arguments: Namespace) -> Path:
    """The folder of the model that the options name; what a hub id names is fetched first."""
    from phiscope.checkpoint.hub import resolve

    return resolve(arguments.model, revision=arguments.revision)


def load_model(
    arguments: Namespace,
    *,
    folder: Path | None = None,
    points: Iterable["Point"] | None = None,
    mapped: bool = False,
) -> "Phi":
    """Load the model that the options name; with `points`, only the blocks that these need.

    `folder` is what `find_model` gave, if it was asked before; `mapped` is `load`'s.
    """
    from phiscope.api import load

    folder = folder or find_model(arguments)
    return load(
        folder,
        mode=arguments.mode,
        layers=None if points is None else _count_blocks(points),
        num_threads=choose_threads(arguments, folder),
        progress=shows_progress(),
        mapped=mapped,
    )


def choose_threads(arguments: Namespace, folder: Path) -> int | None:
    """CPU threads for a model; None: as many as there are."""
    from phiscope.config import read_config

    if arguments.threads is None and read_config(folder).num_parameters < SMALL_MODEL:
        return 1
    threads: int | None = arguments.threads
    return threads


def positive(text: str) -> int:
    """An integer of at least 1."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """An integer of at least 0."""
    return _at_least(0, text)


def positive_number(text: str) -> float:
    """A number above 0."""
    value = number(text)
    if value == 0:
        raise ArgumentTypeError("must be above 0")
    return value


def number(text: str) -> float:
    """A number of at least 0, and not infinite."""
    try:
        value = float(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no number") from error
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"must be a number from 0, got {text}")
    return value


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


def number_list(text: str) -> list[int]:
    """Comma-separated numbers, of layers or tokens: `0,8,16`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no list of numbers such as 0,8,16") from error


def name_list(text: str) -> tuple[str, ...]:
    """Comma-separated names: `mean,last`."""
    return tuple(part.strip() for part in text.split(","))


def part_of(text: str) -> tuple[int, int]:
    """One of several equal parts, counted from 0: `2/8`."""
    part, _, count = text.partition("/")
    if not (part.isdecimal() and count.isdecimal() and int(part) < int(count)):
        raise ArgumentTypeError(f"{text!r} is no part: of 4 parts these are 0/4, 1/4, 2/4 and 3/4")
    return int(part), int(count)


def _count_blocks(points: Iterable["Point"]) -> int | None:
    """Blocks that must run for these points; None: all, and what follows them."""
    depths = [point.depth for point in points]
    known = [depth for depth in depths if depth is not None]
    return max(known) if known and len(known) == len(depths) else None


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no whole number") from error
    if value < least:
        raise ArgumentTypeError(f"must be at least {least}, got {value}")
    return value
