"""`phiscope embed`: one vector per text, as a table, as JSON or as a .npy file.

A row that cannot be served stands in its place, as a fault in text and JSON and as NaN in a file.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from phiscope.cli.arguments import POOLING_NAMES, add_model_arguments, load_model, natural
from phiscope.cli.command import Command
from phiscope.cli.exits import UsageError
from phiscope.cli.printing import emit, emit_json
from phiscope.cli.rows import (
    Row,
    add_row_arguments,
    check_rows,
    in_chunks,
    read_rows,
    report_bad_rows,
    report_file,
)
from phiscope.cli.writing import check_name, write_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from phiscope.api import Phi

    Vector = NDArray[np.float32]


def _add_arguments(parser: ArgumentParser) -> None:
    add_row_arguments(parser)
    parser.add_argument(
        "--layer", type=natural, metavar="L",
        help="which hidden state, 0 (embeddings) to the number of layers (default: that)",
    )  # fmt: skip
    parser.add_argument(
        "--pool", choices=POOLING_NAMES, default="mean", metavar="HOW",
        help=f"{', '.join(POOLING_NAMES)} (default: mean)",
    )  # fmt: skip
    parser.add_argument("--normalize", action="store_true", help="scale each vector to length 1")
    parser.add_argument("--out", metavar="FILE", help="write float32 (texts, hidden) here (.npy)")
    add_model_arguments(parser)


def _run(arguments: Namespace) -> int:
    check_name(arguments.out, ".npy")
    rows = read_rows(arguments)
    phi = load_model(arguments)
    _check_layer(arguments.layer, phi)
    rows = check_rows(rows, phi)
    results = _embed(rows, phi, arguments)
    if arguments.out:
        _write(rows, results, phi, arguments)
    else:
        _print(rows, results, as_json=arguments.json)
    return report_bad_rows(rows)


def _check_layer(layer: int | None, phi: "Phi") -> None:
    most = phi.config.num_hidden_layers
    if layer is not None and layer > most:
        raise UsageError(f"--layer {layer}: this model has hidden states 0 to {most}")


def _embed(rows: Sequence[Row], phi: "Phi", arguments: Namespace) -> Iterator["Vector | None"]:
    """The vector of each row, None for a bad one."""
    for chunk in in_chunks(rows):
        yield from _embed_chunk(chunk, phi, arguments)


def _embed_chunk(
    rows: Sequence[Row], phi: "Phi", arguments: Namespace
) -> Iterator["Vector | None"]:
    texts = [row.text for row in rows if row.fault is None]
    vectors = iter(
        phi.embed(texts, arguments.layer, pool=arguments.pool, normalize=arguments.normalize)
        if texts
        else ()
    )
    return (None if row.fault else next(vectors) for row in rows)


def _print(rows: Sequence[Row], results: Iterator["Vector | None"], *, as_json: bool) -> None:
    for row, vector in zip(rows, results, strict=True):
        if as_json:
            result = {"error": row.fault} if vector is None else {"embedding": vector.tolist()}
            emit_json({"index": row.index, **result})
        elif vector is None:
            emit(f"{row.index}\terror\t{row.fault}")
        else:
            emit("\t".join([str(row.index), *(f"{x:.8g}" for x in vector)]))


def _write(
    rows: Sequence[Row], results: Iterator["Vector | None"], phi: "Phi", arguments: Namespace
) -> None:
    import numpy as np

    array = np.full((len(rows), phi.config.hidden_size), np.nan, dtype=np.float32)
    for number, vector in enumerate(results):
        if vector is not None:
            array[number] = vector
    write_array(arguments.out, array)
    report_file(arguments.out, {"vectors": array.shape}, rows, as_json=arguments.json)


EMBED = Command(
    name="embed",
    summary="turn texts into vectors",
    usage="[TEXT ...] [options]",
    add_arguments=_add_arguments,
    run=_run,
    notes="Without TEXT and --file, the lines of stdin are the texts.",
)
