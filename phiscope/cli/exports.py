"""`phiscope export`: stores as .safetensors, .npy and GGUF control vectors."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiscope.cli.arguments import name_list
from phiscope.cli.command import Command
from phiscope.cli.exits import OK, UsageError, usage_errors
from phiscope.cli.printing import emit_json, note, show_bytes, show_count

if TYPE_CHECKING:
    from phiscope.statistics.point_statistics import PointStatistics

_MAX_NAMED = 8
_NOTES = """\
phiscope export states/ --safetensors states.safetensors
phiscope export states/ --npy vectors.npy --column resid_post.16.mean
phiscope export happy/ --minus sad/ --gguf happy.gguf --column resid_post

A control vector is, for each block, the mean of some rows less that of others:
of two stores, or of two classes of one `extract --stats --label COLUMN`.
llama.cpp adds it (--control-vector FILE)."""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "store", metavar="STORE", help="the folder of a store; for --gguf also a file of statistics"
    )
    group = parser.add_argument_group("one of these files")
    group.add_argument("--safetensors", metavar="FILE", help="columns as tensors")
    group.add_argument("--npy", metavar="FILE", help="one column as an array; needs --column")
    group.add_argument("--gguf", metavar="FILE", help="a control vector: --minus or --classes")
    parser.add_argument(
        "--column", type=name_list, metavar="NAME,...",
        help="only these columns, or the columns of these points (default: all)",
    )  # fmt: skip
    group = parser.add_argument_group("control vector")
    group.add_argument("--minus", metavar="STORE", help="the store whose mean is taken off")
    group.add_argument(
        "--classes", type=name_list, metavar="A,B",
        help="of statistics with --label: the mean of class A less that of class B",
    )  # fmt: skip


def _run(arguments: Namespace) -> int:
    kinds = [kind for kind in _EXPORTS if getattr(arguments, kind) is not None]
    if len(kinds) != 1:
        raise UsageError("a store is exported to one file: give --safetensors, --npy or --gguf")
    _check_directions(arguments)
    out = Path(getattr(arguments, kinds[0]))
    with usage_errors():
        columns = _EXPORTS[kinds[0]](arguments, out)
    size = out.stat().st_size
    if arguments.json:
        emit_json({"file": str(out), "columns": columns, "bytes": size})
    else:
        note(f"{out}: {show_count(len(columns))} of the store's columns, {show_bytes(size)}")
    return OK


def _check_directions(arguments: Namespace) -> None:
    """A direction is a difference of two means, and belongs to --gguf alone."""
    given = [name for name in ("minus", "classes") if getattr(arguments, name) is not None]
    if len(given) != (arguments.gguf is not None):
        raise UsageError("--gguf takes one of --minus and --classes, and other files take neither")
    if arguments.classes is not None and len(arguments.classes) != 2:
        raise UsageError(f"--classes takes two names, got {', '.join(arguments.classes)}")


def _export_safetensors(arguments: Namespace, out: Path) -> list[str]:
    from phiscope.store import open_store
    from phiscope.store.export import export_safetensors, select_columns

    store = open_store(arguments.store)
    export_safetensors(store, out, arguments.column)
    return select_columns(store, arguments.column)


def _export_npy(arguments: Namespace, out: Path) -> list[str]:
    from phiscope.store import open_store
    from phiscope.store.export import export_npy, select_columns

    store = open_store(arguments.store)
    columns = select_columns(store, arguments.column)
    if len(columns) != 1:
        raise UsageError(f"a .npy file holds one column: choose with --column of {_list(columns)}")
    export_npy(store, columns[0], out)
    return columns


def _export_gguf(arguments: Namespace, out: Path) -> list[str]:
    from phiscope.store.control_vector import export_control_vector

    statistics = _measure(arguments.store, arguments.column)
    if arguments.classes is None:
        others = _measure(arguments.minus, arguments.column)
        _check_comparable(arguments, statistics.job, others.job)
        means = {name: moments.mean for name, moments in statistics.columns.items()}
        directions = {name: mean - others[name].mean for name, mean in means.items()}
    else:
        directions = statistics.class_differences(*arguments.classes)
    left_out = export_control_vector(directions, out)
    if left_out:
        note(f"phiscope: {_list(left_out)}: left out, as llama.cpp adds nothing there")
    return [name for name in directions if name not in left_out]


def _check_comparable(
    arguments: Namespace, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> None:
    """Refuse the difference of states that are of two models, or were read in two ways."""
    for what in ("model", "tokenizer", "reading", "edits"):
        if _essence(ours.get(what)) != _essence(theirs.get(what)):
            raise UsageError(
                f"{arguments.store} and {arguments.minus} differ in their {what}, so the difference"
                " of their means is no direction; extract both in the same way"
            )


def _essence(value: Any) -> Any:
    """Without what changes rounding alone."""
    if not isinstance(value, Mapping):
        return value
    return {k: v for k, v in value.items() if k not in ("token_budget", "share_prefixes")}


def _measure(path: str, names: Sequence[str] | None) -> "PointStatistics":
    """The statistics of the columns named, of a store or from a file."""
    from phiscope.statistics.point_statistics import PointStatistics, measure_store
    from phiscope.store import open_store
    from phiscope.store.export import select_columns

    if not Path(path).is_file():
        store = open_store(path)
        return measure_store(store, select_columns(store, names))
    known = PointStatistics.load(Path(path))
    known.check_whole(Path(path))
    if names is None:
        return known
    chosen = [each for each in known.columns if any(f"{each}.".startswith(f"{n}.") for n in names)]
    return PointStatistics({name: known[name] for name in chosen}, known.job)


def _list(columns: Sequence[str]) -> str:
    more = ", ..." if len(columns) > _MAX_NAMED else ""
    return ", ".join(columns[:_MAX_NAMED]) + more


_EXPORTS: dict[str, Callable[[Namespace, Path], list[str]]] = {
    "safetensors": _export_safetensors,
    "npy": _export_npy,
    "gguf": _export_gguf,
}

EXPORT = Command(
    name="export",
    summary="write a store as .safetensors, .npy or a GGUF control vector",
    usage="STORE [options]",
    add_arguments=_add_arguments,
    run=_run,
    notes=_NOTES,
)
