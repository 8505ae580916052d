"""The input of a corpus command: which file, and which of its columns mean what."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from phiscope.cli.arguments import text_argument
from phiscope.cli.exits import usage_errors

if TYPE_CHECKING:
    from phiscope.extraction.inputs import Source

FORMAT_NAMES = ("lines", "jsonl", "csv", "tsv", "parquet", "arrow", "folder", "dataset")
"""Those of `phiscope.extraction.inputs`, written out so that `--help` needs no pyarrow."""
INPUT_HELP = (
    "a file of text lines, JSONL, CSV, TSV, Parquet or Arrow, a folder of text files, a saved "
    "dataset, or - for stdin"
)

_COLUMNS = {
    "text": "the texts (default: text, or the only column of strings)",
    "ids": "token ids instead of texts",
    "prompt": "with --completion: the text is both, one behind the other",
    "completion": "see --prompt",
    "id": "what rows are called (default: id, else their number)",
    "label": "the class of each row",
    "span": "characters [begin, end) of each text, for --tokens span",
}
_CONTENT = ("text", "ids", "prompt", "completion")
"""Of these a row is made; naming one of them leaves out the others."""


def add_column_arguments(parser: ArgumentParser) -> None:
    """How the input is read."""
    group = parser.add_argument_group("columns of the input")
    group.add_argument(
        "--format", choices=FORMAT_NAMES, metavar="FORMAT",
        help=f"{', '.join(FORMAT_NAMES)} (default: by the name's ending; of stdin: lines)",
    )  # fmt: skip
    for name, meaning in _COLUMNS.items():
        group.add_argument(f"--{name}", type=text_argument, metavar="COLUMN", help=meaning)


def open_input(arguments: Namespace) -> "Source":
    """Open what the arguments call `input`."""
    return _open(arguments.input, _list_given(arguments), arguments.format)


def open_again(arguments: Namespace, manifest: Mapping[str, Any]) -> "Source | None":
    """Open the input that a store was made of, by its columns unless the arguments name others.

    It is where `--input` says, or else where it was; None if it is there no more.
    """
    spec = manifest["job"].get("input", {})
    name = arguments.input or manifest["notes"].get("input")
    if name is None or (arguments.input is None and not os.path.exists(name)):
        return None
    given = _list_given(arguments)
    kept = [key for key in _COLUMNS if key not in _CONTENT or not given.keys() & set(_CONTENT)]
    columns = {key: spec[key] for key in kept if spec.get(key) is not None} | given
    known = spec.get("format") if arguments.input is None else None
    return _open(name, columns, arguments.format or known)


def as_note(text: str) -> str:
    """A name as the user wrote it, as Unicode in every locale."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _list_given(arguments: Namespace) -> dict[str, str]:
    given = {name: getattr(arguments, name) for name in _COLUMNS}
    return {name: column for name, column in given.items() if column is not None}


def _open(name: str, columns: Mapping[str, str], format: str | None) -> "Source":
    from phiscope.extraction.inputs import Fields, open_source

    with usage_errors():
        return open_source(name, Fields(**columns), format=format)
