"""`phiscope view` and `merge`: stores, looked at and joined."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiscope.cli.command import Command
from phiscope.cli.exits import OK, UsageError, usage_errors
from phiscope.cli.inputs import add_column_arguments, open_again
from phiscope.cli.printing import (
    emit,
    emit_json,
    emit_table,
    note,
    screen_width,
    show_count,
)

if TYPE_CHECKING:
    from phiscope.store import Store
    from phiscope.views.view import StoreView


def _add_view_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="the folder of a store")
    parser.add_argument("--png", metavar="FILE", help="draw the picture here, not in text")
    parser.add_argument(
        "--column", metavar="COLUMN",
        help="show the rows of this column on their principal components (default: of the "
        "residual stream, the middle one)",
    )  # fmt: skip
    parser.add_argument(
        "--input", metavar="INPUT",
        help="what the store was made of, for --label (default: where it was then)",
    )  # fmt: skip
    add_column_arguments(parser)


def _run_view(arguments: Namespace) -> int:
    from phiscope.store import open_store
    from phiscope.views.view import tabulate, view_store

    store = open_store(arguments.store)
    view = view_store(store, column=arguments.column, labels=_read_labels(arguments, store))
    if arguments.json:
        emit_json(_describe(view))
    else:
        emit_table(*tabulate(view.columns))
    _draw(arguments, view)
    return OK


def _read_labels(arguments: Namespace, store: "Store") -> dict[str, str] | None:
    if arguments.label is None:
        return None
    source = open_again(arguments, store.manifest)
    if source is None:
        raise UsageError(f"--label {arguments.label}: the store's input is not there; give --input")
    return {row.id: row.label for row in source.rows() if row.label is not None}


def _draw(arguments: Namespace, view: "StoreView") -> None:
    if arguments.png:
        from phiscope.views.picture import draw_png

        draw_png(view, Path(arguments.png))
        note(f"{arguments.png}: {view.name}, {view.sampling}")
    elif not arguments.json:
        from phiscope.views.text_picture import draw_text

        emit("")
        for line in draw_text(view, screen_width()):
            emit(line)


def _describe(view: "StoreView") -> dict[str, Any]:
    facts = asdict(view)
    if view.projection is not None:
        facts["projection"]["coordinates"] = view.projection.coordinates.tolist()
    return facts


def _add_merge_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="the folder, or file, of the whole")
    parser.add_argument(
        "parts", nargs="+", metavar="PART",
        help="a folder that `extract --shard` wrote, or with --stats a file",
    )  # fmt: skip


def _run_merge(arguments: Namespace) -> int:
    out, parts = Path(arguments.out), [Path(part) for part in arguments.parts]
    merge = _merge_files if all(part.is_file() for part in parts) else _merge_folders
    with usage_errors():
        facts = merge(parts, out)
    if arguments.json:
        emit_json({"out": arguments.out, **facts})
    rows, texts = show_count(facts["num_rows"]), show_count(facts["num_input_rows"])
    note(f"{out}: {rows} rows of {texts} texts")
    return OK


def _merge_folders(parts: Sequence[Path], out: Path) -> dict[str, int]:
    from phiscope.store import merge_stores, open_store

    merge_stores(parts, out)
    manifest = open_store(out).manifest
    names = ("num_input_rows", "num_rows", "num_tokens", "num_errors")
    return {name: manifest[name] for name in names}


def _merge_files(parts: Sequence[Path], out: Path) -> dict[str, int]:
    from phiscope.statistics.point_statistics import merge_statistics

    if out.exists():
        raise UsageError(f"{out} is there; give another file")
    merged = merge_statistics(parts)
    merged.save(out)
    counts = [moments.count for moments in merged.columns.values()]
    num_input_rows = sum(end - begin for begin, end in merged.ranges)
    return {"num_input_rows": num_input_rows, "num_rows": max(counts)}


VIEW = Command(
    name="view",
    summary="show what a store holds: figures of each column, and a picture",
    usage="STORE [options]",
    add_arguments=_add_view_arguments,
    run=_run_view,
)
MERGE = Command(
    name="merge",
    summary="join the parts of a store that several machines wrote",
    usage="OUT PART [PART ...] [options]",
    add_arguments=_add_merge_arguments,
    run=_run_merge,
)
