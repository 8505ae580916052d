"""`phiscope export-hub`: a checkpoint as a folder that plain transformers opens."""

from argparse import ArgumentParser, Namespace

from phiscope.cli.arguments import positive_number
from phiscope.cli.checkpoints import DTYPE_NAMES
from phiscope.cli.command import Command
from phiscope.cli.exits import OK, usage_errors
from phiscope.cli.printing import emit_json, note, shows_progress

_NOTES = """\
phiscope export-hub old-phi/ my-phi/ --name me/my-phi --license mit

Writes layout D, the tokenizer in one file, a pad token in a spare row of the
embedding (never the end token), and a model card. Nothing is uploaded."""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="a folder, a hub id, or tiny or nano (embedded)"
    )
    parser.add_argument("destination", metavar="DESTINATION", help="a new folder")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, help="(default: as stored)")
    parser.add_argument(
        "--shard-gb", type=positive_number, default=5.0, metavar="GB",
        help="size of a file (default: 5)",
    )  # fmt: skip
    group = parser.add_argument_group("the card")
    group.add_argument(
        "--name", metavar="NAME",
        help="the model's name, or the hub id it shall have (default: the folder's)",
    )  # fmt: skip
    group.add_argument(
        "--license", metavar="WORD",
        help="the hub's word for a licence (default: what the card of SOURCE says)",
    )  # fmt: skip
    group.add_argument("--base-model", metavar="ID", help="the model that this one was made from")


def _run(arguments: Namespace) -> int:
    import torch

    from phiscope.checkpoint.hub_card import CardDetails
    from phiscope.checkpoint.hub_folder import export_hub

    details = CardDetails(
        name=arguments.name, license=arguments.license, base_model=arguments.base_model
    )
    with usage_errors():
        written = export_hub(
            arguments.source,
            arguments.destination,
            details=details,
            dtype=None if arguments.dtype is None else getattr(torch, arguments.dtype),
            revision=arguments.revision,
            max_shard_size=round(arguments.shard_gb * 10**9),
            progress=shows_progress(),
        )
    if written.license is None:
        note("phiscope: the card names no licence; --license WORD does")
    if written.pad_token is None:
        note("phiscope: the embedding has no spare row, so there is no pad token")
    if arguments.json:
        facts = {"pad_token": written.pad_token, "license": written.license}
        emit_json({"source": arguments.source, "destination": str(written.path), **facts})
    else:
        note(f"{written.path}: {arguments.source} for transformers and the hub")
    return OK


EXPORT_HUB = Command(
    name="export-hub",
    summary="write a checkpoint as a folder for transformers and the hub",
    usage="SOURCE DESTINATION [options]",
    add_arguments=_add_arguments,
    run=_run,
    notes=_NOTES,
)
