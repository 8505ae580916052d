"""`phiscope states`: the norms of hidden states as a table, or the states themselves as a file."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiscope.cli.arguments import (
    POOLING_NAMES,
    add_model_arguments,
    find_model,
    load_model,
    number_list,
)
from phiscope.cli.command import Command
from phiscope.cli.exits import UsageError, usage_errors
from phiscope.cli.printing import emit_json, emit_table, note
from phiscope.cli.rows import (
    Row,
    add_row_arguments,
    check_rows,
    in_chunks,
    read_rows,
    report_bad_rows,
    report_file,
)
from phiscope.cli.writing import check_name, write_array, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from phiscope.activations.points import Point
    from phiscope.api import Phi

_NOTES = """\
Without --layers and --points: every hidden state, numbered as transformers
numbers them (0: embeddings, last: after the final LayerNorm).

--out FILE.npy         (states, tokens, hidden) of one text, or with --pool
                       (texts, states, hidden), NaN where a row was bad
--out FILE.safetensors  a tensor `0.resid_post.3` for each text and point, and
                       `0.token_ids`; with --pool `resid_post.3` of all texts"""


def _add_arguments(parser: ArgumentParser) -> None:
    add_row_arguments(parser)
    parser.add_argument(
        "--layers", type=number_list, metavar="L,L,...", help="only these hidden states: 0,8,16"
    )
    parser.add_argument(
        "--points", metavar="POINTS",
        help="these points instead: resid_post.[0:4], attn_out.3, blocks.2.mlp.hook_post ...",
    )  # fmt: skip
    parser.add_argument(
        "--pool", choices=POOLING_NAMES, metavar="HOW",
        help=f"one vector per text: {', '.join(POOLING_NAMES)}",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="write them (.npy or .safetensors)")
    add_model_arguments(parser)


def _run(arguments: Namespace) -> int:
    _check(arguments)
    rows = read_rows(arguments)
    folder = find_model(arguments)
    points = _select_points(arguments, folder)
    phi = load_model(arguments, folder=folder, points=points)
    rows = check_rows(rows, phi)
    good = [row for row in rows if row.fault is None]
    if good and arguments.out:
        _write(arguments, phi, rows, points)
    elif good:
        _show(arguments, phi, good, points)
    return report_bad_rows(rows)


def _check(arguments: Namespace) -> None:
    check_name(arguments.out, ".npy", ".safetensors")
    if arguments.layers is not None and arguments.points is not None:
        raise UsageError("--layers and --points name the same thing; give one of them")
    if arguments.pool and not arguments.out:
        raise UsageError("--pool needs --out: what it gives is vectors to be written")


def _select_points(arguments: Namespace, folder: Path) -> list["Point"]:
    from phiscope.activations.points import resolve_points, transformers_state
    from phiscope.config import read_config

    depth = read_config(folder).num_hidden_layers
    if arguments.points is not None:
        return resolve_points(arguments.points, depth)
    layers = range(depth + 1) if arguments.layers is None else arguments.layers
    return [transformers_state(layer, depth) for layer in layers]


def _show(arguments: Namespace, phi: "Phi", rows: Sequence[Row], points: Sequence["Point"]) -> None:
    maps = [str(point) for point in points if point.kind.shape == "map"]
    if maps:
        raise UsageError(f"{maps[0]} is a map between tokens and has no norms; write it with --out")
    norms = _measure(phi, rows, points)
    if arguments.json:
        emit_json({"model": arguments.model, "mode": phi.mode.name, "rows": norms})
    else:
        count = sum(row["num_tokens"] for row in norms)
        note(f"norms of the hidden states of {count} token{'s' * (count != 1)} in all")
        emit_table(("point", "mean", "least", "most"), _norm_rows(norms, points))


def _measure(phi: "Phi", rows: Sequence[Row], points: Sequence["Point"]) -> list[dict[str, Any]]:
    """For each text the norm of every token's row at every point."""
    acts = _capture(phi, rows, points)
    return [
        {
            "index": row.index,
            "num_tokens": len(next(iter(acts.values()))[number]),
            "norms": {
                name: tensors[number].double().flatten(1).norm(dim=1).tolist()
                for name, tensors in acts.items()
            },
        }
        for number, row in enumerate(rows)
    ]


def _norm_rows(
    norms: Sequence[dict[str, Any]], points: Sequence["Point"]
) -> Iterator[tuple[str, str, str, str]]:
    for name in map(str, points):
        values = [value for row in norms for value in row["norms"][name]]
        mean = sum(values) / len(values)
        yield name, f"{mean:.2f}", f"{min(values):.2f}", f"{max(values):.2f}"


def _write(
    arguments: Namespace, phi: "Phi", rows: Sequence[Row], points: Sequence["Point"]
) -> None:
    make = _pooled if arguments.pool else _by_text
    tensors = make(arguments, phi, rows, points)
    if arguments.out.endswith(".npy"):
        array = _stack(arguments, tensors, len(rows)).numpy()
        write_array(arguments.out, array)
        shapes = {"states": array.shape}
    else:
        write_tensors(arguments.out, tensors)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    report_file(arguments.out, shapes, rows, as_json=arguments.json)


def _by_text(
    arguments: Namespace, phi: "Phi", rows: Sequence[Row], points: Sequence["Point"]
) -> dict[str, "Tensor"]:
    import torch

    good = [row for row in rows if row.fault is None]
    acts = _capture(phi, good, points)
    tensors = {}
    for number, row in enumerate(good):
        tensors[f"{row.index}.token_ids"] = torch.tensor(phi.tokenizer.encode(row.text))
        tensors |= {f"{row.index}.{name}": rows[number] for name, rows in acts.items()}
    return tensors


def _pooled(
    arguments: Namespace, phi: "Phi", rows: Sequence[Row], points: Sequence["Point"]
) -> dict[str, "Tensor"]:
    import torch

    good = [row for row in rows if row.fault is None]
    places = torch.tensor([row.index for row in good])
    acts = _capture(phi, good, points, pool=arguments.pool)
    tensors = {}
    for name, parts in acts.items():
        vectors = torch.stack(parts)
        tensors[name] = torch.full((len(rows), *vectors.shape[1:]), torch.nan)
        tensors[name][places] = vectors.float()
    return tensors


def _capture(
    phi: "Phi", rows: Sequence[Row], points: Sequence["Point"], pool: str | None = None
) -> dict[str, list["Tensor"]]:
    """What lies at each point, text by text."""
    acts: dict[str, list[Tensor]] = {str(point): [] for point in points}
    for chunk in in_chunks(rows):
        found = phi.capture([row.text for row in chunk], points, pool=pool)
        for name, values in found.items():
            acts[name].extend(values)
    return acts


def _stack(arguments: Namespace, tensors: dict[str, "Tensor"], num_rows: int) -> "Tensor":
    """All points in one array, with the texts first if there are several."""
    import torch

    if num_rows > 1 and not arguments.pool:
        raise UsageError("a .npy file holds one text, or vectors: give --pool or .safetensors")
    states = [x.float() for name, x in tensors.items() if not name.endswith(".token_ids")]
    with usage_errors():
        _check_shapes(states)
    return torch.stack(states, dim=1 if arguments.pool else 0)


def _check_shapes(states: Sequence["Tensor"]) -> None:
    shapes = sorted({tuple(state.shape) for state in states})
    if len(shapes) > 1:
        raise ValueError(f"points of different shapes {shapes} need a .safetensors file")


STATES = Command(
    name="states",
    summary="show or write the hidden states of texts",
    usage="[TEXT ...] [options]",
    add_arguments=_add_arguments,
    run=_run,
    notes=_NOTES,
)
