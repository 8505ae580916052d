"""The tokenizer of a folder for the hub: one tokenizer.json, and a pad token that ends no text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from phiscope.checkpoint.safetensors_format import write_bytes, write_json
from phiscope.checkpoint.transfer import TOKENIZER_FILES
from phiscope.config import PhiConfig
from phiscope.errors import CheckpointError
from phiscope.strict import read_json_object, read_optional_json
from phiscope.tokenizer import Tokenizer, load_tokenizer
from phiscope.tokenizer_files import MAX_BYTES, backend_from_spec

PAD_TOKEN = "<|pad|>"
_SETTINGS = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class PaddedTokenizer:
    """A tokenizer with its pad token, if there can be one."""

    tokenizer: Tokenizer
    pad_token: str | None
    is_new: bool
    """Whether the source has no such token."""

    @property
    def pad_token_id(self) -> int | None:
        """Its row of the embedding."""
        if self.pad_token is None:
            return None
        return self.tokenizer.backend.token_to_id(self.pad_token)


def write_tokenizer(source: Path, folder: Path, config: PhiConfig) -> PaddedTokenizer:
    """Write one tokenizer.json in place of the source's files, and settings that agree with it.

    Raises `TokenizerError` for files that are damaged, absent or of another model.
    """
    settings = read_optional_json(source / _SETTINGS, MAX_BYTES, CheckpointError)
    padded = _pad(load_tokenizer(source, config), settings, config)
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    padded.tokenizer.save(folder)
    written = read_json_object(folder / _SETTINGS, MAX_BYTES, CheckpointError)
    written |= _inherit(settings, padded.tokenizer.backend)
    written["model_max_length"] = config.max_position_embeddings
    if padded.pad_token is not None:
        written["pad_token"] = padded.pad_token
    write_json(folder / _SETTINGS, written)
    if (source / _TEMPLATE).is_file():
        write_bytes(folder / _TEMPLATE, (source / _TEMPLATE).read_bytes())
    return padded


def _inherit(settings: Mapping[str, Any], backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """What tokenizer.json does not hold; texts to be continued are padded on the left."""
    tokens = {key: _content(settings.get(key)) for key in ("bos_token", "unk_token")}
    kept = {key: token for key, token in tokens.items() if _is_known(backend, token)}
    kept["padding_side"] = settings.get("padding_side", "left")
    if settings.get("chat_template"):
        kept["chat_template"] = settings["chat_template"]
    return kept


def _pad(tokenizer: Tokenizer, settings: Mapping[str, Any], config: PhiConfig) -> PaddedTokenizer:
    """With the pad token that the source names, unless it ends texts; else with a spare row."""
    backend, index = tokenizer.backend, config.extra.get("pad_token_id")
    by_config = backend.id_to_token(index) if isinstance(index, int) and index >= 0 else None
    for token in (_content(settings.get("pad_token")), by_config, PAD_TOKEN):
        if _is_known(backend, token) and token != tokenizer.eos_token:
            return PaddedTokenizer(tokenizer, token, is_new=False)
    if tokenizer.num_tokens >= config.vocab_size:
        return PaddedTokenizer(tokenizer, None, is_new=False)
    return PaddedTokenizer(_add_pad_token(tokenizer), PAD_TOKEN, is_new=True)


def _add_pad_token(tokenizer: Tokenizer) -> Tokenizer:
    spec = json.loads(tokenizer.backend.to_str())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = {"id": tokenizer.num_tokens, "content": PAD_TOKEN, **flags, "special": True}
    spec["added_tokens"].append(added)
    return Tokenizer(backend_from_spec(spec), eos_token=tokenizer.eos_token)


def _content(token: Any) -> Any:
    """A special token, which files give by its content or as an object with its flags."""
    return token.get("content") if isinstance(token, dict) else token


def _is_known(backend: tokenizers.Tokenizer, token: Any) -> bool:
    return isinstance(token, str) and backend.token_to_id(token) is not None
