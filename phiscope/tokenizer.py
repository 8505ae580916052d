"""Text to token ids and back, exactly: byte-level BPE around the `tokenizers` library.

Every token is a string of bytes, and decoding joins those bytes and reads them as UTF-8 with U+FFFD
for what is none. Nothing is cleaned up, so decoding gives back the encoded text to the letter, and
a stream, piece by piece, gives to the letter what decoding the whole gives.
"""

import codecs
import hashlib
import json
import operator
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from phiscope.config import PhiConfig
from phiscope.errors import TokenizerError
from phiscope.tokenizer_files import (
    END_OF_TEXT,
    BackendFiles,
    backend_from_merges,
    backend_from_spec,
    byte_symbols,
    read_merges,
)

_GPT2_END_ID = 50256
_UNSET_ENDS = (1, 2)  # transformers' defaults for a Phi config that names no bos and eos


class Tokenizer:
    """A byte-level BPE; `eos_token` is the special token that ends a text.

    Takes any backend of that kind, makes sure that it gives back every text exactly (one that adds
    a space in front may), and turns off, in the backend itself, what would make the ids depend on
    anything but the text: truncation, padding and dropout.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, eos_token: str = END_OF_TEXT) -> None:
        self.eos_token_id = _settle(backend, eos_token)
        self.eos_token = eos_token
        self.backend = backend
        self._bytes_of = _byte_table(backend)
        self.num_tokens = max(self._bytes_of) + 1
        """The largest id with a token, plus one; ids from here on are spare."""
        self._refuse_lossy()

    @property
    def vocab_size(self) -> int:
        """The largest id plus one: the rows an embedding needs (`num_tokens`, as others say it)."""
        return self.num_tokens

    def spare_ids(self, num_rows: int) -> list[int]:
        """List the ids below `num_rows` that no token has: read as "", never to be sampled."""
        return [index for index in range(num_rows) if index not in self._bytes_of]

    def encode(self, text: str, *, allow_special: bool = True) -> list[int]:
        """Give the ids of `text`, without anything added before or after.

        A special token written out in the text, such as `<|endoftext|>`, becomes that token, as
        the reference tokenizer does. Text from strangers could so end a document or forge a turn:
        with `allow_special=False` it is read as the plain characters it is made of.
        """
        _refuse_surrogates(text)
        return self._backend_for(allow_special).encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = True) -> list[list[int]]:
        """Give the ids of each text, as `encode` does, on all threads at once."""
        for text in texts:
            _refuse_surrogates(text)
        backend = self._backend_for(allow_special)
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Give the text of `ids`: special tokens written out, spare ids as "".

        Bytes that are no UTF-8 become U+FFFD, as `bytes.decode(errors="replace")` has it.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Give the bytes a token stands for, which may be a part of a character."""
        index = operator.index(token_id)
        if index < 0:
            raise ValueError(f"a token id must not be negative, got {index}")
        return self._bytes_of.get(index, b"")

    def detokenizer(self) -> "Detokenizer":
        """Begin to decode a stream of ids."""
        return Detokenizer(self)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of all that decides what this tokenizer does."""
        return hashlib.sha256(f"{self.eos_token}\n{self.backend.to_str()}".encode()).hexdigest()

    def has_tokens_of(self, other: "Tokenizer") -> bool:
        """Whether each id stands for the same bytes in both, and the same one ends a text."""
        return (self._bytes_of, self.eos_token_id) == (other._bytes_of, other.eos_token_id)

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json and tokenizer_config.json, as `load_tokenizer` and others read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **dict.fromkeys(("bos_token", "eos_token", "unk_token"), self.eos_token),
        }
        _replace(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
        _replace(folder / "tokenizer.json", self.backend.to_str(pretty=True))

    def _backend_for(self, allow_special: bool) -> tokenizers.Tokenizer:
        return self.backend if allow_special else self._plain_backend

    @cached_property
    def _plain_backend(self) -> tokenizers.Tokenizer:
        """The backend that takes no special token from text, only the runs of whitespace."""
        spec = json.loads(self.backend.to_str())
        for token in spec["added_tokens"]:
            token["special"] = not token["content"].isspace()
        backend = backend_from_spec(spec)
        backend.encode_special_tokens = True
        return backend

    def _refuse_lossy(self) -> None:
        """Refuse a backend that is not byte-level, or changes text on its way."""
        try:
            text = self.decode(self.encode(_EVERY_BYTE))
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"this tokenizer cannot encode every text: {error}") from error
        if text.removeprefix(" ") != _EVERY_BYTE:
            raise TokenizerError(
                "this tokenizer does not give back the text it was given, so it is another model's:"
                " Phi's is byte-level BPE with all 256 bytes and no normalizer"
            )


class Detokenizer:
    """Decodes ids one by one; the pieces joined, with the finish, are `decode` of all the ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Give the text that is final with this token: "" while inside a character."""
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """Give what is left: U+FFFD if the ids end inside a character."""
        return self._decoder.decode(b"", final=True)


def load_tokenizer(folder: Path | str, config: PhiConfig | None = None) -> Tokenizer:
    """Read a folder's tokenizer, and make sure that it belongs to the model of `config`.

    Reads tokenizer.json; else vocab.json and merges.txt with the added tokens of added_tokens.json
    or tokenizer_config.json; else a merges file alone (`vocab.bpe` or `merges.txt`). Raises
    `TokenizerError` for files that are damaged, absent or of another model.
    """
    files = BackendFiles(Path(folder))
    try:
        backend = files.read(None if config is None else config.vocab_size)
        if config is None:
            return Tokenizer(backend, eos_token=files.eos_token or END_OF_TEXT)
        _refuse_larger(backend, config)
        return Tokenizer(backend, eos_token=_select_eos_token(backend, config))
    except TokenizerError as error:
        raise TokenizerError(f"tokenizer in {folder}: {error}") from error


def tokenizer_from_merges(merges: Path | str | Iterable[str]) -> Tokenizer:
    """Build the tokenizer from GPT-2's merges alone: a path, or the file's lines.

    256 bytes, the merges in order, `<|endoftext|>`, then the runs of 31..2 spaces and 9..2 tabs.
    """
    lines = read_merges(Path(merges)) if isinstance(merges, Path | str) else merges
    return Tokenizer(backend_from_merges(lines))


def _settle(backend: tokenizers.Tokenizer, eos_token: str) -> int:
    """Turn off truncation, padding and dropout; have the end token read from text, give its id."""
    eos_token_id = backend.token_to_id(eos_token)
    if eos_token_id is None:
        raise TokenizerError(f"there is no token {eos_token!r}, so it is not a Phi tokenizer")
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None
    if eos_token_id not in backend.get_added_tokens_decoder():
        backend.add_special_tokens([eos_token])
    return eos_token_id


def _byte_table(backend: tokenizers.Tokenizer) -> dict[int, bytes]:
    """Map every id to the bytes of its token; added tokens stand for their own letters."""
    code_of = dict.fromkeys(range(0x100), 0x100)  # a letter that is no symbol becomes no byte
    code_of |= {ord(symbol): byte for byte, symbol in enumerate(byte_symbols())}
    added = backend.get_added_tokens_decoder()
    table: dict[int, bytes] = {}
    for token, index in backend.get_vocab(with_added_tokens=True).items():
        if index in table:
            raise TokenizerError(f"two tokens have the id {index}; one of them is {token!r}")
        table[index] = token.encode() if index in added else _read_symbols(token, code_of)
    return table


def _read_symbols(token: str, code_of: dict[int, int]) -> bytes:
    try:
        return token.translate(code_of).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def _refuse_larger(backend: tokenizers.Tokenizer, config: PhiConfig) -> None:
    needed = max(backend.get_vocab(with_added_tokens=True).values(), default=0) + 1
    if needed > config.vocab_size:
        raise TokenizerError(
            f"it has ids up to {needed - 1}, but the embedding has {config.vocab_size} rows:"
            " it belongs to another model"
        )


def _select_eos_token(backend: tokenizers.Tokenizer, config: PhiConfig) -> str:
    """Name the end token the config means; refuse a tokenizer that has other text at its id."""
    end_id = backend.token_to_id(END_OF_TEXT)
    if end_id == config.eos_token_id or (end_id is not None and _names_no_end(config, end_id)):
        return END_OF_TEXT
    named = backend.get_added_tokens_decoder().get(config.eos_token_id)
    if named is not None and named.special:
        content: str = named.content
        return content
    raise TokenizerError(
        f"the model ends texts with id {config.eos_token_id}, which is"
        f" {backend.id_to_token(config.eos_token_id)!r} here, while {END_OF_TEXT!r} is {end_id}:"
        " it belongs to another model"
    )


def _names_no_end(config: PhiConfig, end_id: int) -> bool:
    """Whether the config's end token is a default that nobody chose."""
    is_outside = config.eos_token_id >= config.vocab_size
    is_unset = (config.bos_token_id, config.eos_token_id) == _UNSET_ENDS
    return is_outside or (is_unset and end_id == _GPT2_END_ID)


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ValueError(
            f"character {error.start} of the text is the lone surrogate U+{code:04X}, which is no"
            " character; replace it, for instance by U+FFFD"
        ) from error


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _spell_every_byte() -> str:
    """Write characters whose UTF-8 holds every byte there can be in UTF-8."""
    two_bytes = [*range(0x80, 0xC0), *range(0xC0, 0x800, 0x40)]
    three_bytes = [0x800, *range(0x1000, 0x10000, 0x1000)]
    four_bytes = [0x10000, *range(0x40000, 0x110000, 0x40000)]
    codes = [*range(0x80), *two_bytes, *three_bytes, *four_bytes]
    return "".join(chr(code) for code in codes)


_EVERY_BYTE = _spell_every_byte()
