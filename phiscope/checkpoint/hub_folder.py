"""A folder for the hub: what plain transformers opens, made from a checkpoint of any layout.

Weights in layout D, one tokenizer.json that holds the whole tokenizer, a pad token that is not the
end token, and a card. It appears complete or not at all.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from phiscope.checkpoint.folder import Checkpoint
from phiscope.checkpoint.hub import EMBEDDED, resolve
from phiscope.checkpoint.hub_card import (
    CARD,
    CardDetails,
    CardFacts,
    make_metadata,
    read_card,
    render_card,
)
from phiscope.checkpoint.hub_tokenizer import PaddedTokenizer, write_tokenizer
from phiscope.checkpoint.safetensors_format import write_bytes, write_json
from phiscope.checkpoint.transfer import SHARD_SIZE, convert, new_folder
from phiscope.config import MAX_CONFIG_BYTES, PhiConfig
from phiscope.errors import CheckpointError
from phiscope.strict import read_json_object, read_optional_json

_LEGAL_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFolder:
    """What was written."""

    path: Path
    pad_token: str | None
    """None where the embedding has no spare row for one."""
    license: str | None
    """None where neither the caller nor the card of the source names one."""


def export_hub(
    source: str | Path,
    destination: str | Path,
    *,
    details: CardDetails | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    max_shard_size: int = SHARD_SIZE,
    progress: bool = False,
) -> HubFolder:
    """Write a checkpoint, named as `phiscope.load` names it, to a new folder for the hub.

    `dtype=None` keeps every stored dtype. A pad token is added to the tokenizer where the source
    has none and the embedding a spare row. The folder must not exist or be empty. Raises
    `CheckpointError`, `ConfigError`, `TokenizerError` or `HubError`, and leaves nothing then.
    """
    found, destination = resolve(str(source), revision=revision), Path(destination)
    details, size = details or CardDetails(), max_shard_size
    with new_folder(destination) as folder:
        convert(found, folder, layout="D", dtype=dtype, max_shard_size=size, progress=progress)
        with Checkpoint(found) as before, Checkpoint(folder) as after:
            padded = write_tokenizer(found, folder, before.config)
            facts = CardFacts(
                name=details.name or destination.absolute().name,
                config=before.config,
                origin=_describe_origin(str(source), found),
                layout=before.layout,
                stored=tuple(before.dtypes),
                written=tuple(after.dtypes),
                padded=padded,
            )
        _write_ends(found, folder, facts.config, padded)
        metadata = _write_card(found, folder, facts, details)
    return HubFolder(destination, padded.pad_token, metadata.get("license"))


def _write_ends(source: Path, folder: Path, config: PhiConfig, padded: PaddedTokenizer) -> None:
    """The ids that begin, end and pad texts, where transformers looks for them."""
    end = padded.tokenizer.eos_token_id
    is_named = config.eos_token_id == end  # else defaults stand where the config is silent
    ends = {"bos_token_id": config.bos_token_id if is_named else end, "eos_token_id": end}
    pad = {} if padded.pad_token_id is None else {"pad_token_id": padded.pad_token_id}
    several = config.extra.get("eos_token_id")
    listed = {"eos_token_id": several} if isinstance(several, list) else {}
    settings = read_optional_json(
        source / "generation_config.json", MAX_CONFIG_BYTES, CheckpointError
    )
    settings.pop("_from_model_config", None)
    write_json(folder / "generation_config.json", {**ends, **listed, **settings, **pad})
    written = read_json_object(folder / "config.json", MAX_CONFIG_BYTES, CheckpointError)
    write_json(folder / "config.json", {**written, **ends, **pad})


def _write_card(
    source: Path, folder: Path, facts: CardFacts, details: CardDetails
) -> dict[str, Any]:
    """Write the card, with the files that state terms of use, and give its front matter."""
    inherited, text = read_card(source / CARD)
    metadata = make_metadata(details, inherited)
    write_bytes(folder / CARD, render_card(facts, metadata, text).encode())
    for name in _LEGAL_FILES:
        if (source / name).is_file():
            write_bytes(folder / name, (source / name).read_bytes())
    return metadata


def _describe_origin(source: str, found: Path) -> str:
    """No path of this machine: a folder is called by its name."""
    if source in EMBEDDED:
        return f"`{source}`, which comes with Phiscope"
    if _COMMIT.fullmatch(found.name):
        return f"`{source}` at commit `{found.name}`"
    return f"the folder `{found.resolve().name}`"
