"""`phiscope info`, `verify`, `convert` and `quantize`: checkpoints, looked at and rewritten."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from phiscope.cli.command import Command
from phiscope.cli.exits import CHECKPOINT_FAULT, OK, UsageError, usage_errors
from phiscope.cli.printing import (
    emit,
    emit_facts,
    emit_json,
    note,
    show_bytes,
    show_count,
    shows_progress,
)
from phiscope.cli.verification import add_store_arguments, is_store, run_on_store

if TYPE_CHECKING:
    from phiscope.checkpoint import Summary, Verification

LAYOUT_NAMES = ("A", "B", "C", "D")
DTYPE_NAMES = ("float16", "bfloat16", "float32", "float64")
FORMAT_NAMES = ("int8", "int4")
"""Those of `phiscope.config.QUANTIZATIONS`."""
_LAYOUT_NOTES = """\
Layouts: A mixformer-sequential, B phi-msft, C transformers 4.36 (fused),
D transformers 4.37 and later."""

_QUANTIZE_NOTES = """\
Linear layers become whole numbers of 8 bits with a scale for each output, or of
4 bits with a multiplier for every 32 inputs too; embeddings bf16. The folder is
for Phiscope alone: --mode auto runs it as int8-cpu or int4-cpu, and processes
that do share its memory. docs/modes.md has what rounding costs."""

_VERIFY_NOTES = """\
Of a checkpoint: names, shapes, NaN and infinities, and the hash of each file.
Of a store: the hash of each file, and a sample of its rows, computed again
alone and in fp32, with the largest error of each column."""


def _add_source(parser: ArgumentParser, name: str) -> None:
    parser.add_argument(
        name, metavar=name.upper(), help="a folder, a hub id, or tiny or nano (embedded)"
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")


def _add_model(parser: ArgumentParser) -> None:
    _add_source(parser, "model")


def _add_verify_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH",
        help="a checkpoint (a folder, a hub id, or tiny or nano), or the folder of a store",
    )  # fmt: skip
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    add_store_arguments(parser)


def _add_convert_arguments(parser: ArgumentParser) -> None:
    _add_source(parser, "source")
    parser.add_argument("destination", metavar="DESTINATION", help="a new folder")
    parser.add_argument("--layout", choices=LAYOUT_NAMES, default="D", help="(default: D)")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, help="(default: as stored)")
    parser.add_argument(
        "--shard-gb", type=float, default=5.0, metavar="GB", help="size of a file (default: 5)"
    )


def _add_quantize_arguments(parser: ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("folder", metavar="FOLDER", help="a new folder")
    parser.add_argument("--format", choices=FORMAT_NAMES, default="int8", help="(default: int8)")


def _find(name: str, revision: str | None) -> Path:
    from phiscope.checkpoint.hub import resolve

    return resolve(name, revision=revision)


def _run_info(arguments: Namespace) -> int:
    from phiscope.checkpoint import describe

    summary = describe(_find(arguments.model, arguments.revision))
    if arguments.json:
        emit_json(summary.to_dict())
    else:
        _print_summary(summary)
    return OK


def _print_summary(summary: "Summary") -> None:
    config = summary.config
    heads = f"{config.num_attention_heads} heads of {config.head_dim}"
    if config.num_key_value_heads != config.num_attention_heads:
        heads += f" ({config.num_key_value_heads} for keys and values)"
    emit_facts(
        [
            ("folder", summary.folder),
            ("layout", summary.layout or f"Phiscope's {config.quantization}"),
            ("parameters", show_count(summary.num_parameters)),
            ("layers", f"{config.num_hidden_layers} of {config.hidden_size} with {heads}"),
            ("mlp", f"{config.intermediate_size}, {config.hidden_act}"),
            ("rotary", f"{config.rotary_dim} of {config.head_dim}, base {config.rope_theta:g}"),
            ("vocabulary", show_count(config.vocab_size)),
            ("context", f"{show_count(config.max_position_embeddings)} tokens"),
            ("stored", ", ".join(f"{n} x {dtype}" for dtype, n in summary.dtypes.items())),
        ]
    )
    for name, size in summary.files.items():
        emit_facts([("file", f"{name}, {show_bytes(size)}")])


def _run_verify(arguments: Namespace) -> int:
    if is_store(arguments.path):
        return run_on_store(arguments)
    if arguments.input or arguments.model:
        raise UsageError(f"--input and --model are for stores, and {arguments.path} is none")
    return _verify_checkpoint(arguments)


def _verify_checkpoint(arguments: Namespace) -> int:
    from tqdm import tqdm

    from phiscope.checkpoint import verify

    folder = _find(arguments.path, arguments.revision)
    with tqdm(unit="B", unit_scale=True, delay=2, disable=not shows_progress()) as bar:
        found = verify(folder, on_bytes=bar.update)
    if arguments.json:
        emit_json(found.to_dict())
    else:
        _print_verification(found)
    for problem in found.problems:
        note(f"phiscope: {problem}")
    return OK if found.sound else CHECKPOINT_FAULT


def _print_verification(found: "Verification") -> None:
    emit_facts([("folder", found.folder), ("sound", "yes" if found.sound else "no")])
    if found.num_tensors:
        where = "as Phiscope rounds them" if found.layout is None else f"in layout {found.layout}"
        emit(f"{show_count(found.num_tensors)} tensors {where}, all shapes right")
    for name, digest in found.sha256.items():
        emit(f"{digest}  {name}")


def _run_convert(arguments: Namespace) -> int:
    import torch

    from phiscope.checkpoint import convert

    source, destination = arguments.source, Path(arguments.destination)
    with usage_errors():
        convert(
            _find(source, arguments.revision),
            destination,
            layout=arguments.layout,
            dtype=None if arguments.dtype is None else getattr(torch, arguments.dtype),
            max_shard_size=round(arguments.shard_gb * 10**9),
            progress=shows_progress(),
        )
    written = {"source": source, "destination": str(destination), "layout": arguments.layout}
    if arguments.json:
        emit_json(written)
    else:
        note(f"{destination}: {source} in layout {arguments.layout}")
    return OK


def _run_quantize(arguments: Namespace) -> int:
    from phiscope.checkpoint import quantize

    model, folder = arguments.model, Path(arguments.folder)
    source = _find(model, arguments.revision)
    quantize(source, folder, format=arguments.format, progress=shows_progress())
    size = sum(path.stat().st_size for path in folder.iterdir())
    if arguments.json:
        written = {"model": model, "folder": str(folder), "format": arguments.format}
        emit_json(written | {"bytes": size})
    else:
        note(f"{folder}: {model} in {arguments.format}, {show_bytes(size)}")
    return OK


INFO = Command(
    name="info",
    summary="say what a checkpoint holds, from its headers",
    usage="MODEL [options]",
    add_arguments=_add_model,
    run=_run_info,
    notes=_LAYOUT_NOTES,
)
VERIFY = Command(
    name="verify",
    summary="read a whole checkpoint, or a store, and say whether it is sound",
    usage="PATH [options]",
    add_arguments=_add_verify_arguments,
    run=_run_verify,
    notes=_VERIFY_NOTES,
)
CONVERT = Command(
    name="convert",
    summary="rewrite a checkpoint in another layout or dtype",
    usage="SOURCE DESTINATION [options]",
    add_arguments=_add_convert_arguments,
    run=_run_convert,
    notes=_LAYOUT_NOTES,
)
QUANTIZE = Command(
    name="quantize",
    summary="round a checkpoint's weights to 8 or 4 bits, in a folder that loads at once",
    usage="MODEL FOLDER [options]",
    add_arguments=_add_quantize_arguments,
    run=_run_quantize,
    notes=_QUANTIZE_NOTES,
)
