"""`phiscope verify` of a store: its files, and a sample of its rows computed again."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

from phiscope.cli.arguments import choose_threads, natural, positive
from phiscope.cli.exits import FAILED, OK, UsageError
from phiscope.cli.inputs import add_column_arguments, open_again
from phiscope.cli.printing import (
    emit_facts,
    emit_json,
    emit_table,
    note,
    show_count,
    shows_progress,
)
from phiscope.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from phiscope.extraction.extractor import Extractor
    from phiscope.extraction.inputs import Row, Source
    from phiscope.extraction.options import ExtractOptions
    from phiscope.extraction.verification import Verification
    from phiscope.model import PhiForCausalLM
    from phiscope.store import Store

_HEADER = ("column", "max abs", "max rel", "expected", "sound")


def add_store_arguments(parser: ArgumentParser) -> None:
    """What only the verification of a store takes."""
    group = parser.add_argument_group("of a store")
    group.add_argument(
        "--input", metavar="INPUT", help="what it was made of (default: where it was then)"
    )
    group.add_argument(
        "--rows", type=natural, default=64, metavar="N",
        help="rows to compute again in fp32 (default: 64; 0: check the files alone)",
    )  # fmt: skip
    group.add_argument("--model", metavar="NAME", help="its model (default: the one it names)")
    group.add_argument("--threads", type=positive, metavar="T", help="CPU threads")
    add_column_arguments(parser)


def is_store(name: str) -> bool:
    """Whether a path is that of a store, also of an unfinished one, and of no checkpoint."""
    from phiscope.checkpoint.hub import EMBEDDED
    from phiscope.store.folder import JOURNAL_NAME, MANIFEST_NAME

    if name in EMBEDDED or os.path.exists(os.path.join(name, "config.json")):
        return False
    marks = (MANIFEST_NAME, JOURNAL_NAME)
    return any(os.path.exists(os.path.join(name, mark)) for mark in marks)


def run_on_store(arguments: Namespace) -> int:
    """Verify a store, and put what was found into its manifest."""
    from phiscope.store import open_store

    store = open_store(arguments.path)
    source = open_again(arguments, store.manifest) if arguments.rows else None
    if source is None:
        faults, found = store.check(), None
        _tell_why_no_rows(arguments, store)
    else:
        found = _verify(arguments, store, source)
        faults = list(found.faults)
    if arguments.json:
        emit_json(_describe(store, faults, found))
    else:
        _print(store, faults, found)
    for fault in faults:
        note(f"phiscope: {fault}")
    return OK if not faults and (found is None or found.is_sound) else FAILED


def _verify(arguments: Namespace, store: "Store", source: "Source") -> "Verification":
    from phiscope.extraction.verification import verify_store
    from phiscope.store import set_verification

    extractor = _make_extractor(arguments, store.manifest)
    found = verify_store(extractor, store, _watch(source), arguments.rows)
    if not found.faults:
        try:
            set_verification(store.path, found.to_json())
        except StoreError as error:  # a store may be on a disk that only reads
            note(f"phiscope: warning: the manifest does not have the result: {error}")
    return found


def _watch(source: "Source") -> Iterator["Row"]:
    """All rows, with a progress bar where somebody looks and it takes long."""
    from tqdm import tqdm

    yield from tqdm(source.rows(), unit="row", delay=2, disable=not shows_progress())


def _make_extractor(arguments: Namespace, manifest: Mapping[str, Any]) -> "Extractor":
    """The extractor of a store's job, with weights of its kind wherever this runs."""
    import torch

    from phiscope.checkpoint.hub import resolve
    from phiscope.config import read_config
    from phiscope.extraction.extractor import Extractor
    from phiscope.extraction.readings import find_depth, make_readings
    from phiscope.tokenizer import load_tokenizer

    name, revision = _find_name(arguments, manifest)
    options = _read_options(manifest)
    folder = resolve(name, revision=revision)
    config = read_config(folder)
    torch.set_num_threads(choose_threads(arguments, folder) or torch.get_num_threads())
    kind = manifest["job"]["software"]["weights"]
    model = _load(folder, kind, layers=find_depth(make_readings(options, config)))
    return Extractor(model, load_tokenizer(folder, config), options)


def _load(folder: "Path", kind: str, *, layers: int | None) -> "PhiForCausalLM":
    """A model with weights of a dtype, or of a format of integers."""
    import torch

    from phiscope.checkpoint import load_integers, load_model
    from phiscope.config import QUANTIZATIONS, read_config
    from phiscope.runtime import select_mode
    from phiscope.wide import widen

    if kind in QUANTIZATIONS:
        model = load_integers(folder, kind, wide=True, layers=layers, progress=shows_progress())
        return widen(model)
    count = read_config(folder).num_parameters
    return load_model(
        folder,
        dtype=getattr(torch, kind),
        device=select_mode("auto", num_parameters=count).device,
        layers=layers,
        progress=shows_progress(),
    )


def _find_name(arguments: Namespace, manifest: Mapping[str, Any]) -> tuple[str, str | None]:
    """The name and the revision of the model."""
    if not manifest["job"].keys() >= {"edits", "reading", "software"}:
        raise StoreError("the manifest does not say how the states were read; give --rows 0")
    if manifest["job"]["edits"]:
        raise UsageError("the states were made under edits; only --rows 0 can verify them here")
    if arguments.model is not None:
        return arguments.model, arguments.revision
    notes = manifest["notes"]
    if "model" not in notes:
        raise UsageError("the store does not name its model; give --model, or --rows 0")
    return notes["model"], arguments.revision or notes.get("revision")


def _read_options(manifest: Mapping[str, Any]) -> "ExtractOptions":
    from phiscope.extraction.options import make_options

    reading = dict(manifest["job"]["reading"])
    if reading["overflow"] != "window":
        del reading["stride"]
    return make_options(**reading, shard_size=manifest["shard_size"])


def _tell_why_no_rows(arguments: Namespace, store: "Store") -> None:
    name = store.manifest["notes"].get("input")
    if arguments.rows:
        what = "the store does not name its input" if name is None else f"{name} is not there"
        note(f"phiscope: {what}, so only the files were checked; give --input to compute rows")


def _describe(store: "Store", faults: list[str], found: "Verification | None") -> dict[str, Any]:
    verification = None if found is None else found.to_json()
    sound = not faults and (found is None or found.is_sound)
    return {
        "store": str(store.path),
        "sound": sound,
        "faults": faults,
        "verification": verification,
    }


def _print(store: "Store", faults: list[str], found: "Verification | None") -> None:
    num_files = len(store.manifest["shards"])
    files = f"{num_files - len(faults)} of {num_files} as they were written"
    facts = [("store", store.path), ("files", files)]
    if found is None or not found.columns:
        emit_facts(facts)
    else:
        emit_facts([*facts, ("rows", f"{show_count(found.num_rows)} computed again in fp32")])
        emit_table(_HEADER, _list_columns(found))


def _list_columns(found: "Verification") -> Iterator[tuple[str, ...]]:
    for name, each in found.columns.items():
        numbers = (each.max_abs, each.max_rel, each.tolerance)
        shown = (f"{number:.1e}" if isfinite(number) else "-" for number in numbers)
        yield name, *shown, "yes" if each.is_sound else "NO"
