"""Command: one subcommand of `phiscope`, and the parser built from a table of them."""

import argparse
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import phiscope


@dataclass(frozen=True, kw_only=True)
class Command:
    """One subcommand. Its `run` imports what it needs, so that `--help` stays without torch."""

    name: str
    summary: str
    usage: str
    """What follows the name: `PROMPT [options]`."""
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    """Does the work and gives the exit code."""
    notes: str = ""
    """What `--help` says below the options."""


@dataclass(frozen=True, kw_only=True)
class CommandGroup:
    """Subcommands that share their first word."""

    name: str
    summary: str
    commands: tuple[Command, ...]
    """Each under its second word."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, at most 100 columns; the options begin at column 28."""

    def __init__(self, prog: str) -> None:
        width = min(int(os.environ.get("COLUMNS") or 0) or _terminal_width(), 100) - 2
        super().__init__(prog, max_help_position=28, width=max(width, 30))


class Parser(ArgumentParser):
    """A parser whose help fails as any other data does when it cannot be written."""

    def print_help(self, file: Any = None) -> None:
        (sys.stdout if file is None else file).write(self.format_help())


def make_parser(commands: Iterable[Command | CommandGroup]) -> ArgumentParser:
    """Build the parser of `phiscope`; the chosen command is `arguments.command`."""
    parser = Parser(
        prog="phiscope",
        usage="phiscope COMMAND [options]",
        description="Run Phi-2, phi-1.5 and phi-1, and read every hidden state inside them.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"phiscope {phiscope.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", prog="phiscope")
    parser.set_defaults(command=None)
    for command in commands:
        if isinstance(command, CommandGroup):
            _add_group(subparsers, command)
        else:
            _add_json(_add(subparsers, command, "phiscope"), default=False)
    return parser


_EPILOG = """\
`phiscope COMMAND --help` lists the options of a command.
Data goes to stdout, words to stderr. Exit codes: 0 ok, 1 failed, 2 usage,
3 some input rows were bad, 4 a fault of the checkpoint, 130 interrupted."""


def _add(
    subparsers: "argparse._SubParsersAction[Parser]", command: Command, program: str
) -> Parser:
    parser = subparsers.add_parser(
        command.name,
        help=command.summary,
        usage=f"{program} {command.name} {command.usage}",
        description=command.summary[0].upper() + command.summary[1:] + ".",
        epilog=command.notes,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    parser.set_defaults(command=command)
    return parser


def _add_group(subparsers: "argparse._SubParsersAction[Parser]", group: CommandGroup) -> None:
    program = f"phiscope {group.name}"
    parser = subparsers.add_parser(
        group.name,
        help=group.summary,
        usage=f"{program} COMMAND [options]",
        description=group.summary[0].upper() + group.summary[1:] + ".",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    below = parser.add_subparsers(title="commands", metavar="COMMAND", prog=program, required=True)
    for command in group.commands:
        _add_json(_add(below, command, program), default=argparse.SUPPRESS)
    _add_json(parser, default=False)


def _add_json(parser: ArgumentParser, *, default: object) -> None:
    """`default`: SUPPRESS where the parser above has set it."""
    help = "print JSON instead of text"
    parser.add_argument("--json", action="store_true", default=default, help=help)


def _terminal_width() -> int:
    try:
        return os.get_terminal_size().columns or 80
    except (OSError, ValueError):
        return 80
