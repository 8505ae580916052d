"""The tokenizer gives back every text, whatever files it came in, and as transformers has it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from phiscope.config import PhiConfig
from phiscope.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer, tokenizer_from_merges

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "tokenizer"
MERGES = ["#version: 0.2", "h e", "l l", "he ll"]
RUNS = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]
CORPUS = [
    "def add(a, b):\n    return a + b\n",
    "the hen then held the hello bell",
    "na\u00efve \u4e2d",
]

letters = st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \t\nhel\u00e9\u4e2d\U0001f642"))
texts = st.lists(st.one_of(st.text(letters), st.sampled_from([END_OF_TEXT, *RUNS]))).map("".join)


def train(vocab_size: int = 290) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([END_OF_TEXT])
    backend.add_tokens(RUNS)
    return backend


def write_vocab_and_merges(folder: Path, backend: tokenizers.Tokenizer) -> dict[str, int]:
    """Write the two files of a slow tokenizer; give the added tokens that belong beside them."""
    model = json.loads(backend.to_str())["model"]
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return {token.content: index for index, token in backend.get_added_tokens_decoder().items()}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train())


@pytest.fixture(scope="module")
def phi_tokenizer() -> Tokenizer:
    if not REFERENCE.is_dir():
        pytest.skip("GPT-2's merges are not here")
    return tokenizer_from_merges(REFERENCE / "vocab.bpe")


def test_golden_encodings_are_met_and_decoded_back(phi_tokenizer: Tokenizer) -> None:
    golden = json.loads((REFERENCE / "golden_encodings.json").read_text(encoding="utf-8"))
    for case in golden:
        assert phi_tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert phi_tokenizer.decode(case["ids"]) == case["text"]
    assert len(golden) > 15


def test_phi_has_its_end_token_and_its_spare_ids(phi_tokenizer: Tokenizer) -> None:
    assert phi_tokenizer.eos_token_id == 50256
    assert phi_tokenizer.num_tokens == phi_tokenizer.vocab_size == 50295
    assert phi_tokenizer.spare_ids(51200) == list(range(50295, 51200))


def test_merges_alone_number_bytes_then_merges_then_the_end_then_the_runs() -> None:
    tokenizer = tokenizer_from_merges(MERGES)
    assert tokenizer.encode("!a \0") == [0, 64, 220, 188]
    assert tokenizer.encode("hello") == [258, 78]
    assert tokenizer.encode("he ll") == [256, 220, 257]
    assert tokenizer.encode(END_OF_TEXT) == [259]
    assert tokenizer.encode(" " * 31) == [260]
    assert tokenizer.encode("a" + " " * 33 + "b") == [64, 260, 289, 65]
    assert tokenizer.encode("\t" * 11) == [290, 297]
    assert tokenizer.num_tokens == 298


@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_every_text_comes_back_and_alone_equals_in_a_batch(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "x", text]) == [ids, tokenizer.encode("x"), ids]
    plain = tokenizer.encode(text, allow_special=False)
    assert tokenizer.decode(plain) == text
    assert tokenizer.eos_token_id not in plain


def test_fault_4_control_characters_come_back(tokenizer: Tokenizer) -> None:
    text = "".join(map(chr, range(0x20))) + "\x7f\x80\u2028\ufeff\uffff"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("method", ["encode", "encode_batch"])
def test_fault_3_a_lone_surrogate_is_named(tokenizer: Tokenizer, method: str) -> None:
    text = "ab\ud800c"
    with pytest.raises(ValueError, match=r"character 2 .* lone surrogate U\+D800"):
        getattr(tokenizer, method)(text if method == "encode" else ["fine", text])


def test_special_tokens_can_be_kept_out_of_text() -> None:
    backend = train()
    backend.add_tokens(["<|turn|>"])  # not marked as special, as fine-tunes have it
    tokenizer = Tokenizer(backend)
    text = f"a{END_OF_TEXT}  <|turn|>"
    with_special, without = tokenizer.encode(text), tokenizer.encode(text, allow_special=False)
    run, turn = backend.token_to_id("  "), backend.token_to_id("<|turn|>")
    assert with_special == [*tokenizer.encode("a"), tokenizer.eos_token_id, run, turn]
    assert turn not in without
    assert tokenizer.eos_token_id not in without
    assert run in without
    assert tokenizer.decode(without) == text
    assert tokenizer.encode(text) == with_special


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_streamed_pieces_are_the_decoded_whole(tokenizer: Tokenizer, data: st.DataObject) -> None:
    all_ids = st.integers(0, tokenizer.num_tokens + 9)
    non_ascii = st.sampled_from([*tokenizer.encode("\u00e9\u4e2d\U0001f642\ud7ff\x85"), 188, 221])
    ids = data.draw(st.lists(st.one_of(all_ids, non_ascii)))
    stream = tokenizer.detokenizer()
    pieces = [stream.push(index) for index in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


def test_a_character_is_streamed_with_its_last_byte(tokenizer: Tokenizer) -> None:
    stream = tokenizer.detokenizer()
    ids = tokenizer.encode("\U0001f642")
    assert [stream.push(index) for index in ids] == ["", "", "", "\U0001f642"]
    assert stream.finish() == ""


def test_a_broken_character_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0001f642")[:2]
    assert tokenizer.decode(ids) == "\ufffd"
    stream = tokenizer.detokenizer()
    assert [*map(stream.push, ids), stream.finish()] == ["", "", "\ufffd"]


def test_spare_ids_are_empty_and_no_ids_are_errors(tokenizer: Tokenizer) -> None:
    spare = tokenizer.num_tokens
    assert tokenizer.decode([spare, 10**9]) == ""
    assert tokenizer.decode(np.array(tokenizer.encode("hello"))) == "hello"
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        tokenizer.decode([-1])
    with pytest.raises(TypeError):
        tokenizer.decode([1.0])  # type: ignore[list-item]


def test_every_kind_of_files_gives_the_same_tokenizer(tmp_path: Path) -> None:
    backend = train()
    backend.save(str(tmp_path / "tokenizer.json"))
    expected = load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    added = write_vocab_and_merges(tmp_path, backend)
    by_id = {str(index): {"content": token} for token, index in added.items()}
    for name, content in (
        ("added_tokens.json", added),
        ("tokenizer_config.json", {"added_tokens_decoder": by_id}),
    ):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.backend.get_vocab() == expected.backend.get_vocab()
        for text in [*CORPUS, END_OF_TEXT, *RUNS, "a \t\t  \nb"]:
            assert tokenizer.encode(text) == expected.encode(text)
        (tmp_path / name).unlink()


def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new")
    loaded = load_tokenizer(tmp_path / "new")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert loaded.fingerprint != Tokenizer(train(289)).fingerprint


def test_another_end_token_is_saved_and_loaded(tmp_path: Path) -> None:
    backend = train()
    backend.add_special_tokens(["<|im_end|>"])
    Tokenizer(backend, eos_token="<|im_end|>").save(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_token_id == backend.token_to_id("<|im_end|>")
    config = PhiConfig(vocab_size=512, eos_token_id=backend.token_to_id(END_OF_TEXT))
    assert load_tokenizer(tmp_path, config).eos_token == END_OF_TEXT
    config = PhiConfig(vocab_size=512, eos_token_id=tokenizer.eos_token_id)
    assert load_tokenizer(tmp_path, config).eos_token == "<|im_end|>"


def test_an_end_token_that_nobody_chose_is_the_end_of_text(
    phi_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    phi_tokenizer.save(tmp_path)
    unset = PhiConfig(bos_token_id=1, eos_token_id=2)
    assert load_tokenizer(tmp_path, unset).eos_token_id == 50256


def test_phi_without_its_added_tokens_still_has_them_if_there_is_room(
    phi_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_vocab_and_merges(tmp_path, phi_tokenizer.backend)
    assert load_tokenizer(tmp_path).encode("\n    x") == [198, 50284, 87]
    assert load_tokenizer(tmp_path, PhiConfig()).num_tokens == 50295
    assert load_tokenizer(tmp_path, PhiConfig(vocab_size=50257)).num_tokens == 50257


def test_merges_alone_leave_the_runs_out_if_there_is_no_room(tmp_path: Path) -> None:
    (tmp_path / "vocab.bpe").write_text("\n".join([*MERGES, ""]), encoding="utf-8")
    assert load_tokenizer(tmp_path).num_tokens == 298
    assert load_tokenizer(tmp_path, PhiConfig(vocab_size=298)).num_tokens == 298
    assert load_tokenizer(tmp_path, PhiConfig(vocab_size=297)).num_tokens == 260


def test_settings_that_change_texts_are_turned_off(tmp_path: Path) -> None:
    backend = train()
    expected = Tokenizer(train()).encode("hello hello hello")
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    backend.model.dropout = 0.9
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("hello hello hello") == expected


def test_added_tokens_keep_the_ids_of_the_file(tmp_path: Path) -> None:
    spec = json.loads(train().to_str())
    spec["added_tokens"][-1]["id"] = 400  # the library alone would renumber it in silence
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("\t\t") == [400]
    assert tokenizer.num_tokens == 401
    assert tokenizer.spare_ids(403) == [*range(328, 400), 401, 402]


def test_a_vocabulary_entry_with_blanks_is_an_added_token(tmp_path: Path) -> None:
    added = write_vocab_and_merges(tmp_path, train())
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | added), encoding="utf-8")
    assert load_tokenizer(tmp_path).encode("   ") == [added["   "]]


@pytest.fixture(scope="module", params=["trained", "phi"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Any]:
    """Ours and transformers' tokenizer, from the same files."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("pair")
    is_phi = request.param == "phi"
    backend = request.getfixturevalue("phi_tokenizer").backend if is_phi else train()
    added = write_vocab_and_merges(folder, backend)
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocab.setdefault(END_OF_TEXT, added[END_OF_TEXT])
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    by_id = {str(added[token]): {"content": token, "special": False} for token in RUNS}
    config = {"added_tokens_decoder": by_id, "tokenizer_class": "CodeGenTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_tokenizer(folder), transformers.CodeGenTokenizer.from_pretrained(folder)


@settings(max_examples=150, deadline=None)
@given(text=texts, data=st.data())
def test_equal_to_transformers(pair: tuple[Tokenizer, Any], text: str, data: st.DataObject) -> None:
    ours, theirs = pair
    assert ours.encode(text) == theirs.encode(text)
    ids = data.draw(st.lists(st.integers(0, ours.num_tokens - 1)))
    assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_a_saved_folder_opens_in_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*CORPUS, f"  {END_OF_TEXT} \t\t x"]:
        assert theirs.encode(text) == tokenizer.encode(text)
    assert theirs.eos_token_id == tokenizer.eos_token_id
