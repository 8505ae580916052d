"""Writes docs/cli.md from the commands themselves: `make docs`. A test compares the two."""

import os
from pathlib import Path

from phiscope.cli import COMMANDS
from phiscope.cli.command import CommandGroup, make_parser

PAGE = Path(__file__).with_name("cli.md")
_INTRODUCTION = """\
# The command line

Data goes to stdout and words to stderr, so what a command prints can be piped. `--json` prints JSON
instead of text: one document, or for `embed` and `chat` one for each line of input. Progress bars
appear after two seconds, on stderr, and only in a terminal.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed: a file, the machine, a prompt beyond the context |
| 2 | the command was given something that cannot be |
| 3 | some input rows were bad; they are named on stderr, and the others were served |
| 4 | a checkpoint, config, tokenizer or hub id is at fault |
| 130 | interrupted |

A bad row (empty, too long, not UTF-8) keeps its place: `embed` prints its fault, and files hold NaN
there. Only a store leaves it out and names it in `errors.jsonl`. `python -m phiscope` is the same
command. This page is written by `make docs`.
"""


def render() -> str:
    """The page, with every help as an 80-column terminal shows it."""
    os.environ["COLUMNS"] = "80"
    helps = [("phiscope", make_parser(COMMANDS).format_help())]
    for command in COMMANDS:
        helps.append((f"phiscope {command.name}", _help(command.name)))
        for part in command.commands if isinstance(command, CommandGroup) else ():
            words = (command.name, part.name)
            helps.append((" ".join(["phiscope", *words]), _help(*words)))
    sections = [f"## {name}\n\n```text\n{text.strip()}\n```\n" for name, text in helps]
    return "\n".join([_INTRODUCTION, *sections])


def _help(*words: str) -> str:
    parser = make_parser(COMMANDS)
    for word in words:
        (subparsers,) = parser._subparsers._group_actions
        parser = subparsers.choices[word]
    return parser.format_help()


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
