"""The files a tokenizer comes in, each read into one backend of the `tokenizers` library.

Whatever the files, the way is the same: the content of a tokenizer.json is put together as a
dict, the library builds the backend from it, and what came out is compared with what was asked.
The library itself renumbers added tokens in silence, and takes vocabularies with tokens missing.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from phiscope.errors import CheckpointError, TokenizerError
from phiscope.strict import read_optional_json

END_OF_TEXT = "<|endoftext|>"
AddedToken = dict[str, Any]
MAX_BYTES = 2**26  # sixteen times the largest tokenizer.json of a Phi
WHITESPACE_RUNS = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]
_NUM_GPT2_TOKENS = 50257
_MERGES_NAMES = ("merges.txt", "vocab.bpe")
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


class BackendFiles:
    """One folder's tokenizer files; which of them are there decides how they are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise TokenizerError(f"there is no folder {folder}")
        self._settings = self._json("tokenizer_config.json")

    @property
    def eos_token(self) -> str | None:
        """The end token that tokenizer_config.json names."""
        named = self._settings.get("eos_token")
        content = named.get("content") if isinstance(named, dict) else named
        return content if isinstance(content, str) and content.isprintable() else None

    def read(self, num_rows: int | None) -> tokenizers.Tokenizer:
        """Read the backend; `num_rows` is what the model's embedding has room for."""
        merges = next(filter(Path.is_file, map(self.folder.joinpath, _MERGES_NAMES)), None)
        if (self.folder / "tokenizer.json").is_file():
            return backend_from_spec(self._json("tokenizer.json"))
        if merges is None:
            raise TokenizerError("there is no tokenizer.json, and no merges.txt or vocab.bpe")
        if (self.folder / "vocab.json").is_file():
            return self._from_vocab(read_merges(merges), num_rows)
        return backend_from_merges(read_merges(merges), num_rows=num_rows)

    def _from_vocab(self, lines: list[str], num_rows: int | None) -> tokenizers.Tokenizer:
        vocab = self._json("vocab.json")
        pairs = _parse_merges(lines)
        added = self._added_tokens(vocab, num_rows)
        _refuse_missing_merges(vocab, pairs, added)
        prefixed = self._settings.get("add_prefix_space") is True
        return backend_from_spec(_make_spec(vocab, pairs, added, add_prefix_space=prefixed))

    def _added_tokens(self, vocab: Mapping[str, int], num_rows: int | None) -> list[AddedToken]:
        """The end token, and what the files add; Phi's runs of whitespace if they add nothing.

        A copy of Phi that lost its added_tokens.json still has GPT-2's very vocabulary; read as it
        stands, all indented code would be encoded wrongly, without a sign.
        """
        symbols = set(byte_symbols())
        by_id = self._settings.get("added_tokens_decoder") or {}
        if not isinstance(by_id, dict):
            raise TokenizerError("tokenizer_config.json's added_tokens_decoder is no object")
        by_name = self._json("added_tokens.json")
        added = [_read_added_token(index, flags) for index, flags in by_id.items()]
        added += [_added_token(token, index) for token, index in by_name.items()]
        added += [_added_token(*item) for item in vocab.items() if not symbols.issuperset(item[0])]
        is_phi_without = len(vocab) == _NUM_GPT2_TOKENS and vocab.get(END_OF_TEXT) == len(vocab) - 1
        if is_phi_without and not added:
            added += _whitespace_tokens(len(vocab), num_rows)
        if END_OF_TEXT in vocab:
            added.append(_added_token(END_OF_TEXT, vocab[END_OF_TEXT]))
        return _merge_added(added)

    def _json(self, name: str) -> dict[str, Any]:
        """Read a JSON object of the folder; an absent file is an empty one."""
        try:
            return read_optional_json(self.folder / name, MAX_BYTES, CheckpointError)
        except CheckpointError as error:
            raise TokenizerError(f"{error}; if it is cut short, fetch it again") from error


def read_merges(path: Path) -> list[str]:
    """Read the lines of a merges file, which must end with its last line's end."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 at byte {error.start}") from error
    if len(data) > MAX_BYTES:
        raise TokenizerError(f"{path} is larger than the {MAX_BYTES:,} bytes such a file may have")
    if not text.endswith("\n"):
        raise TokenizerError(f"{path} ends within a line, so it is cut short: fetch it again")
    return text.split("\n")[:-1]


def backend_from_merges(
    lines: Iterable[str], *, num_rows: int | None = None
) -> tokenizers.Tokenizer:
    """Build the backend from merges alone: bytes, merges, end token, runs of whitespace.

    The runs are left out if `num_rows`, the model's embedding, has no room for them.
    """
    pairs = _parse_merges(lines)
    vocab = {symbol: index for index, symbol in enumerate(_symbols_in_order())}
    for left, right in pairs:
        if left not in vocab or right not in vocab or left + right in vocab:
            raise TokenizerError(f"the merge {left!r} {right!r} does not follow from those before")
        vocab[left + right] = len(vocab)
    vocab[END_OF_TEXT] = len(vocab)
    added = [_added_token(END_OF_TEXT, vocab[END_OF_TEXT])]
    added += _whitespace_tokens(len(vocab), num_rows)
    return backend_from_spec(_make_spec(vocab, pairs, added))


def backend_from_spec(spec: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Build the backend from the content of a tokenizer.json, every added token at its own id."""
    backend = _build(spec)
    ids = {token["content"]: token["id"] for token in spec.get("added_tokens") or []}
    if not _is_renumbered(backend, ids):
        return backend
    model = spec["model"]
    for token, index in ids.items():
        _refuse_second_id(token, model["vocab"].get(token, index), index)
    # tokens of the vocabulary keep their ids
    return _build({**spec, "model": {**model, "vocab": {**model["vocab"], **ids}}})


def byte_symbols() -> list[str]:
    """The letter that stands for each of the 256 bytes in a byte-level vocabulary.

    Printable bytes stand for themselves, the others for the letters from U+0100 on, in order.
    """
    spare = map(chr, range(0x100, 0x200))
    return [chr(byte) if byte in _PRINTABLE else next(spare) for byte in range(256)]


_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))


def _symbols_in_order() -> list[str]:
    """The byte symbols in the order of GPT-2's ids: the printable ones first."""
    return sorted(byte_symbols())


def _parse_merges(lines: Iterable[str]) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(lines, start=1):
        left, blank, right = line.rstrip("\r\n").partition(" ")
        if number == 1 and line.startswith("#version"):
            continue
        if not (left and blank and right) or " " in right:
            raise TokenizerError(f"line {number} of the merges is {line!r}, not two symbols")
        pairs.append((left, right))
    return pairs


def _refuse_missing_merges(
    vocab: Mapping[str, int], pairs: list[tuple[str, str]], added: list[AddedToken]
) -> None:
    known = {left + right for left, right in pairs} | {token["content"] for token in added}
    missing = [token for token in vocab if len(token) > 1 and token not in known]
    if missing:
        raise TokenizerError(
            f"{len(missing)} tokens of vocab.json, {missing[0]!r} the first, have no merge: the"
            " merges file is cut short or belongs to another vocabulary"
        )


def _make_spec(
    vocab: Mapping[str, int],
    pairs: list[tuple[str, str]],
    added: list[AddedToken],
    *,
    add_prefix_space: bool = False,
) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {**byte_level, "add_prefix_space": add_prefix_space},
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {"type": "BPE", "vocab": dict(vocab), "merges": pairs},
    }


def _whitespace_tokens(first_id: int, num_rows: int | None) -> list[AddedToken]:
    if num_rows is not None and first_id + len(WHITESPACE_RUNS) > num_rows:
        return []
    return [_added_token(run, first_id + place) for place, run in enumerate(WHITESPACE_RUNS)]


def _added_token(content: str, index: int) -> AddedToken:
    return {**_FLAGS, "id": index, "content": content, "special": not content.isspace()}


def _read_added_token(index: str, flags: Any) -> AddedToken:
    """Read an entry of tokenizer_config.json's `added_tokens_decoder`."""
    content = flags.get("content") if isinstance(flags, dict) else None
    if not (index.isdecimal() and isinstance(content, str)):
        raise TokenizerError(f"tokenizer_config.json has no token at the added id {index!r}")
    return {**_FLAGS, "special": False, **flags, "id": int(index)}


def _merge_added(tokens: list[AddedToken]) -> list[AddedToken]:
    """Keep each token once; the first to name it knows most about it."""
    merged: dict[str, AddedToken] = {}
    for token in tokens:
        known = merged.setdefault(token["content"], token)
        _refuse_second_id(token["content"], known["id"], token["id"])
    return list(merged.values())


def _refuse_second_id(token: str, first: int, second: int) -> None:
    if first != second:
        raise TokenizerError(f"the token {token!r} has two ids, {first} and {second}")


def _is_renumbered(backend: tokenizers.Tokenizer, ids: Mapping[str, int]) -> bool:
    """Whether the library has given added tokens other ids than the file says."""
    return any(backend.token_to_id(token) != index for token, index in ids.items())


def _build(spec: Mapping[str, Any]) -> tokenizers.Tokenizer:
    model = spec.get("model")
    marks = ("continuing_subword_prefix", "end_of_word_suffix")
    if isinstance(model, dict) and any(map(model.get, marks)):
        raise TokenizerError("its tokens mark the ends of words: another model's kind")
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"the tokenizers library refuses it: {error}") from error
    if not isinstance(backend.model, tokenizers.models.BPE):
        kind = type(backend.model).__name__
        raise TokenizerError(f"it is {kind}, another model's kind of tokenizer: Phi's is BPE")
    return backend
