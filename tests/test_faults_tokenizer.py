"""Fault 46: a tokenizer that is truncated, of another model, or larger than the embedding."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from phiscope.config import PhiConfig
from phiscope.errors import TokenizerError
from phiscope.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer, tokenizer_from_merges

MERGES = ["#version: 0.2", "h e", "l l", "he ll", "hell o", "\u0120 w"]
NUM_TOKENS = 256 + 5 + 1 + 38
END_ID = 256 + 5


def write_merges(folder: Path, lines: list[str]) -> None:
    (folder / "merges.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def read_spec() -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(tokenizer_from_merges(MERGES).backend.to_str())
    return spec


def config(**changes: Any) -> PhiConfig:
    values = {"vocab_size": 320, "eos_token_id": END_ID, "bos_token_id": END_ID}
    return PhiConfig(**(values | changes))


@pytest.fixture
def vocab_folder(tmp_path: Path) -> Path:
    """A folder with vocab.json, merges.txt and added_tokens.json."""
    spec = read_spec()
    added = {token["content"]: token["id"] for token in spec["added_tokens"]}
    write_json(tmp_path / "vocab.json", spec["model"]["vocab"])
    write_json(tmp_path / "added_tokens.json", added)
    write_merges(tmp_path, MERGES)
    assert load_tokenizer(tmp_path, config()).num_tokens == NUM_TOKENS
    return tmp_path


def test_fault_46_tokenizer_json_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = json.dumps(read_spec()).encode()
    path = tmp_path / "tokenizer.json"
    for length in [*range(0, len(data), 61), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(TokenizerError, match=r"tokenizer\.json is not sound JSON.*cut short"):
            load_tokenizer(tmp_path)
    path.write_bytes(data)
    assert load_tokenizer(tmp_path, config()).num_tokens == NUM_TOKENS


@pytest.mark.parametrize("name", ["vocab.json", "added_tokens.json"])
def test_fault_46_vocabulary_cut_anywhere_is_refused(vocab_folder: Path, name: str) -> None:
    path = vocab_folder / name
    data = path.read_bytes()
    for length in [*range(0, len(data), 61), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(TokenizerError, match=f"{name} is not sound JSON"):
            load_tokenizer(vocab_folder)


def test_fault_46_merges_cut_anywhere_are_refused(vocab_folder: Path) -> None:
    path = vocab_folder / "merges.txt"
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(TokenizerError, match=r"cut short|not UTF-8|not two symbols"):
            load_tokenizer(vocab_folder)


def test_fault_46_merges_alone_cut_anywhere_are_refused(tmp_path: Path) -> None:
    write_merges(tmp_path, MERGES)
    assert load_tokenizer(tmp_path, config()).num_tokens == NUM_TOKENS
    path = tmp_path / "merges.txt"
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(TokenizerError, match=r"cut short|not UTF-8|another model"):
            load_tokenizer(tmp_path, config())


def test_fault_46_larger_than_the_embedding_is_refused_with_both_sizes(tmp_path: Path) -> None:
    tokenizer_from_merges(MERGES).save(tmp_path)
    assert load_tokenizer(tmp_path, config(vocab_size=NUM_TOKENS)).num_tokens == NUM_TOKENS
    with pytest.raises(TokenizerError, match="ids up to 299, but the embedding has 299 rows"):
        load_tokenizer(tmp_path, config(vocab_size=NUM_TOKENS - 1))


def test_fault_46_other_text_at_the_end_id_is_refused(tmp_path: Path) -> None:
    tokenizer_from_merges(MERGES).save(tmp_path)
    with pytest.raises(TokenizerError, match=r"id 5, which is '&' here, while .* is 261"):
        load_tokenizer(tmp_path, config(eos_token_id=5))
    with pytest.raises(TokenizerError, match=r"id 50256, which is None here"):
        load_tokenizer(tmp_path, PhiConfig())
    with pytest.raises(TokenizerError, match="another model"):
        load_tokenizer(tmp_path, config(bos_token_id=1, eos_token_id=2))


def _without_end(spec: dict[str, Any]) -> None:
    del spec["model"]["vocab"][END_OF_TEXT]
    spec["added_tokens"] = []


def _word_piece(spec: dict[str, Any]) -> None:
    unknown = {"unk_token": END_OF_TEXT, "max_input_chars_per_word": 9}
    prefix = {"continuing_subword_prefix": "##"}
    spec["model"] = {"type": "WordPiece", "vocab": spec["model"]["vocab"], **unknown, **prefix}


def _metaspace(spec: dict[str, Any]) -> None:
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}
    spec["pre_tokenizer"] = spec["decoder"] = {**metaspace, "split": True}


def _lowercase(spec: dict[str, Any]) -> None:
    spec["normalizer"] = {"type": "Lowercase"}


def _byte_gone(spec: dict[str, Any]) -> None:
    del spec["model"]["vocab"]["\u0100"]


def _two_at_one_id(spec: dict[str, Any]) -> None:
    spec["model"]["vocab"]["<x>"] = 7


def _added_at_a_taken_id(spec: dict[str, Any]) -> None:
    spec["added_tokens"][3]["id"] = 7


def _added_with_a_second_id(spec: dict[str, Any]) -> None:
    spec["added_tokens"].append({**spec["added_tokens"][0], "content": "!"})


def _marked_words(spec: dict[str, Any]) -> None:
    spec["model"]["continuing_subword_prefix"] = "##"


def _unknown_merge(spec: dict[str, Any]) -> None:
    spec["model"]["merges"].append(["zz", "top"])


def _negative_id(spec: dict[str, Any]) -> None:
    spec["model"]["vocab"]["<x>"] = -1


def _no_model(spec: dict[str, Any]) -> None:
    spec["model"] = []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_end, r"no token '<\|endoftext\|>', so it is not a Phi tokenizer"),
        (_word_piece, "another model's kind"),
        (_metaspace, "does not give back the text it was given"),
        (_lowercase, "does not give back the text it was given"),
        (_byte_gone, "does not give back the text it was given"),
        (_two_at_one_id, "two tokens have the id 7"),
        (_added_at_a_taken_id, "two tokens have the id 7"),
        (_added_with_a_second_id, "the token '!' has two ids, 0 and 261"),
        (_marked_words, "mark the ends of words"),
        (_unknown_merge, "library refuses it: .*out of vocabulary"),
        (_negative_id, "library refuses it"),
        (_no_model, "library refuses it"),
    ],
)
def test_fault_46_another_kind_of_tokenizer_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    spec = read_spec()
    damage(spec)
    write_json(tmp_path / "tokenizer.json", spec)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_fault_46_a_backend_that_alters_text_is_refused() -> None:
    backend = tokenizer_from_merges(MERGES).backend
    backend.normalizer = normalizers.NFKC()
    with pytest.raises(TokenizerError, match="no normalizer"):
        Tokenizer(backend)


def test_fault_46_a_backend_that_cannot_encode_is_refused() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({END_OF_TEXT: 0}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.decoder = decoders.ByteLevel()
    with pytest.raises(TokenizerError, match="cannot encode every text"):
        Tokenizer(backend)


def test_fault_46_a_token_of_two_files_with_two_ids_is_refused(vocab_folder: Path) -> None:
    entry = {"content": "\t\t"}
    write_json(vocab_folder / "tokenizer_config.json", {"added_tokens_decoder": {"300": entry}})
    with pytest.raises(TokenizerError, match=r"the token '\\t\\t' has two ids, 300 and 299"):
        load_tokenizer(vocab_folder)


@pytest.mark.parametrize(
    "entry", [{"x": {"content": "a"}}, {"300": "a"}, {"300": {"content": []}}, ["a"], 3]
)
def test_fault_46_added_tokens_of_no_sense_are_refused(vocab_folder: Path, entry: object) -> None:
    write_json(vocab_folder / "tokenizer_config.json", {"added_tokens_decoder": entry})
    with pytest.raises(TokenizerError, match="added"):
        load_tokenizer(vocab_folder)


@pytest.mark.parametrize("index", [None, "300", -1, 1.5, True, 2**40])
def test_fault_46_ids_of_no_sense_are_refused(vocab_folder: Path, index: object) -> None:
    write_json(vocab_folder / "added_tokens.json", {"<x>": index})
    with pytest.raises(TokenizerError, match="library refuses it"):
        load_tokenizer(vocab_folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("h", "line 7 of the merges is 'h', not two symbols"),
        ("h e l", "not two symbols"),
        ("zz h", "'zz' 'h' does not follow from those before"),
        ("h e", "'h' 'e' does not follow from those before"),
    ],
)
def test_fault_46_a_line_that_is_no_merge_is_named(line: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizer_from_merges([*MERGES, line])


def test_fault_46_absent_files_are_named(tmp_path: Path, vocab_folder: Path) -> None:
    (vocab_folder / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json, and no merges\.txt"):
        load_tokenizer(vocab_folder)
    with pytest.raises(TokenizerError, match="there is no folder"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(TokenizerError, match="cannot read"):
        tokenizer_from_merges(tmp_path / "absent")


@pytest.mark.parametrize("name", ["tokenizer.json", "merges.txt"])
def test_fault_46_a_file_of_absurd_size_is_not_read(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**33)  # a sparse file
    with pytest.raises(TokenizerError, match="larger than the 67,108,864 bytes"):
        load_tokenizer(tmp_path)
