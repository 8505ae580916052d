"""From a name to a checkpoint folder: a path, a model of the package, or a Hugging Face hub id.

The cache, the token, the endpoint and offline mode are `huggingface_hub`'s: HF_HOME, HF_TOKEN,
HF_ENDPOINT, HF_HUB_OFFLINE. Nothing but config, tokenizer and weight files is ever fetched.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phiscope.errors import HubError

EMBEDDED = ("nano", "tiny")
SMALL_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
)
SAFETENSORS = (
    *("model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
    "quantized.safetensors",
)
PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_REMEDIES = {  # by the name of huggingface_hub's exception, the most special first
    "GatedRepoError": "access to it must be granted on its page; then set HF_TOKEN",
    "RepositoryNotFoundError": "there is no such model; if it is private, set HF_TOKEN",
    "RevisionNotFoundError": "it has no such revision; name a branch, tag or commit",
    "OfflineModeIsEnabled": "it is not in the cache; unset HF_HUB_OFFLINE to fetch it",
    "LocalEntryNotFoundError": (
        "it is not whole in the cache and the hub was not reached; check the connection, "
        "HF_HUB_OFFLINE and HF_HOME"
    ),
    "HFValidationError": "a hub id reads organisation/name",
    "HfHubHTTPError": "the hub refused; try again, or check HF_TOKEN and HF_ENDPOINT",
    "PermissionError": "the cache cannot be written; set HF_HOME to a folder that can",
    "OSError": "check the connection, and the cache's space and permissions (HF_HOME); "
    "what was fetched is kept, so trying again goes on from there",
}


def resolve(
    name: str, *, revision: str | None = None, options: Mapping[str, Any] | None = None
) -> Path:
    """The folder of a checkpoint, which is fetched first where the name is a hub id.

    `options` are `huggingface_hub.snapshot_download`'s: cache_dir, token and so on. "tiny" and
    "nano" come with the package (a folder of that name is "./tiny"); else a folder that exists
    wins. Raises `HubError`, with the remedy, for a name that leads nowhere, for a revision
    of what is not on the hub, and for anything that goes wrong while fetching.
    """
    local = find_local(name)
    if local is not None:
        if revision is not None:
            raise HubError(f"{name!r} is a folder here and has no revision {revision!r}; leave it")
        return local
    if not _HUB_ID.fullmatch(name):
        raise HubError(
            f"no folder {name!r}, and it is no hub id such as 'microsoft/phi-2', nor one of the "
            f"embedded {', '.join(EMBEDDED)}"
        )
    folder = _fetch(name, revision, SAFETENSORS, options or {})
    if not any(folder.glob("*.safetensors")):
        folder = _fetch(name, revision, PICKLES, options or {})
    if not (folder / "config.json").is_file():
        raise HubError(f"{name!r} has no config.json on the hub: it is not a model's folder")
    return folder


def find_local(name: str) -> Path | None:
    """The folder of an embedded model, or the one of that name; None for what a hub may have."""
    if name in EMBEDDED:
        return _embedded_folder(name)
    folder = Path(os.path.expanduser(name))  # Path's own raises where there is no home
    return folder if name and os.path.isdir(folder) else None


def _embedded_folder(name: str) -> Path:
    folder = Path(__file__).parents[1] / "models" / name
    if not (folder / "config.json").is_file():
        raise HubError(f"the embedded model {name!r} is missing; install phiscope again")
    return folder


def _fetch(
    name: str, revision: str | None, weights: tuple[str, ...], options: Mapping[str, Any]
) -> Path:
    """The snapshot in the cache, completed by what is not there yet."""
    from huggingface_hub import snapshot_download  # half a second that a local folder need not wait

    try:
        found = snapshot_download(
            name,
            revision=revision,
            allow_patterns=[*SMALL_FILES, *weights],
            ignore_patterns=["*/*"],  # patterns would match inside sub-folders too
            **options,
        )
    except Exception as error:  # its HTTP library's errors have no common ground
        raise HubError(_explain(name, revision, error)) from error
    return Path(found)


def _explain(name: str, revision: str | None, error: Exception) -> str:
    at = f" at revision {revision!r}" if revision else ""
    remedies = (_find_remedy(cause) for cause in (error.__cause__, error))
    remedy = next((remedy for remedy in remedies if remedy), "try again")
    lines = str(error).strip().splitlines()
    return f"cannot fetch {name!r}{at}: {remedy} ({lines[0] if lines else type(error).__name__})"


def _find_remedy(error: BaseException | None) -> str | None:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return next((_REMEDIES[kind] for kind in _REMEDIES if kind in kinds), None)
