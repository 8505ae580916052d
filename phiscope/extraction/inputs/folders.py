"""A folder of text files: each file is a text, its relative path the id.

Files are taken from all folders below, in the order of their relative paths. Hidden ones, links to
folders, and files whose ending is not that of a text are passed over.
"""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from phiscope.errors import InputError
from phiscope.extraction.inputs.fields import ID, TEXT
from phiscope.extraction.inputs.rows import MAX_ROW_BYTES, BadRowError
from phiscope.extraction.inputs.sources import Reader, Unread, reading
from phiscope.extraction.inputs.streams import BOM

_ENDINGS = """
    .txt .text .md .rst .org .tex .html .htm .xml .yaml .yml .toml
    .py .pyi .r .jl .m .sh .sql .js .jsx .ts .tsx .css .java .kt .scala .c .h .cc .cpp .hpp .cu
    .cs .go .rs .rb .php .pl .lua .swift .hs .ml .lean .v
"""
TEXT_ENDINGS = tuple(_ENDINGS.split())


def read_folder(folder: Path) -> Reader:
    """The columns are "id" and "text"; a text is all of its file but for a mark (BOM)."""
    if next(_walk(folder), None) is None:
        raise InputError(f"{folder} holds no text files, such as .txt, .md or .py")

    def open_at(start: int, _: Sequence[str]) -> Iterator[Unread]:
        for name in islice(_walk(folder), start, None):
            yield partial(_read_file, folder, name)

    return Reader(
        open=open_at,
        columns={ID: True, TEXT: True},
        count=lambda: sum(1 for _ in _walk(folder)),
    )


def _walk(folder: Path) -> Iterator[str]:
    """Relative paths in order; memory holds the names beside the path to the present one."""
    pending = [""]
    while pending:
        name = pending.pop()
        if name and not name.endswith("/"):
            yield name
        else:
            pending.extend(reversed(_list_entries(folder, name)))


def _list_entries(folder: Path, below: str) -> list[str]:
    """The text files of one folder and, with a slash, its folders, in the order of their paths."""
    with reading(folder / below), os.scandir(folder / below) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        folders = [e.name + "/" for e in visible if e.is_dir(follow_symlinks=False)]
        files = [e.name for e in visible if e.name.lower().endswith(TEXT_ENDINGS) and e.is_file()]
    return sorted(below + name for name in folders + files)


def _read_file(folder: Path, name: str) -> object:
    try:
        with (folder / name).open("rb") as file:
            data = file.read(MAX_ROW_BYTES + 1)
    except OSError as error:
        raise BadRowError(f"cannot be read: {error.strerror}", name) from error
    if len(data) > MAX_ROW_BYTES:
        raise BadRowError(f"longer than {MAX_ROW_BYTES:,} bytes", name)
    return {ID: name, TEXT: data.removeprefix(BOM)}
