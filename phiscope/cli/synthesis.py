"""`phiscope synthesize`: generated textbook data with labels planted in it."""

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from phiscope.cli.arguments import natural, positive
from phiscope.cli.command import Command
from phiscope.cli.exits import OK, usage_errors
from phiscope.cli.printing import emit_json, emit_table, note, show_bytes, show_count
from phiscope.cli.writing import check_name, write_lines

if TYPE_CHECKING:
    from phiscope.training.synthetic import Sample

SPLIT_NAMES = ("train", "heldout", "both")
_MAX_LISTED = 8
_NOTES = """\
phiscope synthesize --out train.jsonl --count 20000 --split train
phiscope synthesize --out heldout.jsonl --count 2000 --split heldout

Kinds: story, fact, occupation, qa, chat, code, junk. Each line has id, text,
kind, template, split and a column for each label, null where a kind has none.
Held-out samples are written with templates that no other sample is written
with."""

Counts = dict[str, dict[str, Counter[str]]]
"""Samples by kind, label and class; `split` counts as a label."""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FILE", help="the .jsonl file to write")
    parser.add_argument(
        "--count", type=positive, required=True, metavar="N", help="samples to write"
    )
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="S", help="of all that is drawn (default: 0)"
    )
    parser.add_argument(
        "--mix", type=_mix, metavar="KIND=W,...",
        help="weights of kinds, such as story=4,fact=1; others are left out (default: all kinds)",
    )  # fmt: skip
    parser.add_argument(
        "--strength", type=float, default=0.6, metavar="S",
        help="correlation of gender and occupation, from -1 to 1 (default: 0.6)",
    )  # fmt: skip
    parser.add_argument(
        "--heldout-share", type=float, default=0.2, metavar="P",
        help="share of each kind's templates that is held out (default: 0.2)",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=SPLIT_NAMES, default="both", help="templates to use (default: both)"
    )


def _mix(text: str) -> dict[str, float]:
    """Weights by name: `story=4,fact=1`."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError as error:
            raise ArgumentTypeError(
                f"{part!r} is no kind with a weight, such as story=4"
            ) from error
    return weights


def _run(arguments: Namespace) -> int:
    check_name(arguments.out, ".jsonl")
    from phiscope.training.synthetic import SyntheticOptions, generate

    given = {} if arguments.mix is None else {"mix": arguments.mix}
    with usage_errors():
        options = SyntheticOptions(
            seed=arguments.seed,
            strength=arguments.strength,
            heldout_share=arguments.heldout_share,
            split=arguments.split,
            **given,
        )
    counts: Counts = {}
    out = Path(arguments.out)
    samples = _counted(generate(options, 0, arguments.count), counts)
    write_lines(out, (json.dumps(_row(sample)) for sample in samples))
    _print(out, arguments.count, counts, as_json=arguments.json)
    return OK


def _row(sample: "Sample") -> dict[str, str | None]:
    """The columns of a sample, the same ones for each."""
    from phiscope.training.synthetic import LABELS

    return {
        "id": sample.id,
        "text": sample.text,
        "kind": sample.kind,
        "template": sample.template,
        "split": sample.split,
        **{label: sample.labels.get(label) for label in LABELS},
    }


def _counted(samples: Iterable["Sample"], counts: Counts) -> Iterator["Sample"]:
    """The samples, counted as they go by."""
    for sample in samples:
        of_kind = counts.setdefault(sample.kind, {})
        for label, value in {"split": sample.split, **sample.labels}.items():
            of_kind.setdefault(label, Counter())[value] += 1
        yield sample


def _print(out: Path, count: int, counts: Counts, *, as_json: bool) -> None:
    if as_json:
        emit_json({"file": str(out), "samples": count, "counts": counts})
        return
    emit_table(
        ("kind", "label", "samples", "classes"),
        (
            (kind, label, show_count(found.total()), _show(found))
            for kind, labels in sorted(counts.items())
            for label, found in labels.items()
        ),
    )
    note(f"{out}: {show_count(count)} samples, {show_bytes(out.stat().st_size)}")


def _show(found: Counter[str]) -> str:
    if len(found) > _MAX_LISTED:
        most, least = show_count(max(found.values())), show_count(min(found.values()))
        return f"{len(found)} classes of {least} to {most}"
    return ", ".join(f"{name} {show_count(number)}" for name, number in sorted(found.items()))


SYNTHESIZE = Command(
    name="synthesize",
    summary="write generated textbook data with labels planted in it",
    usage="--out FILE --count N [options]",
    add_arguments=_add_arguments,
    run=_run,
    notes=_NOTES,
)
