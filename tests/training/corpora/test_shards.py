import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpora import build, make_shards, write_sentence

from phiscope.errors import TrainingError
from phiscope.training.corpora.shards import Shards

LENGTHS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4)


@given(LENGTHS, st.data())
def test_places_are_read_across_shards(lengths, data):
    shards = make_shards(*lengths)
    start = data.draw(st.integers(0, shards.num_tokens - 1))
    stop = data.draw(st.integers(start + 1, shards.num_tokens))
    assert shards.read(start, stop).tolist() == list(range(start, stop))
    ends = np.cumsum([length for one in lengths for length in one]).tolist()
    assert shards.ends(start, stop).tolist() == [end for end in ends if start < end <= stop]


@given(LENGTHS)
def test_documents_are_the_stream_cut_at_its_ends(lengths):
    shards = make_shards(*lengths)
    documents = [shards.document(number).tolist() for number in range(shards.num_documents)]
    assert [len(one) for one in documents] == [length for one in lengths for length in one]
    assert [token for one in documents for token in one] == list(range(shards.num_tokens))


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 99)])
def test_places_that_are_not_there_are_refused(start, stop):
    with pytest.raises(IndexError, match=f"no places {start} to {stop} among 10"):
        make_shards([4, 6]).read(start, stop)


def test_a_document_that_is_not_there_is_refused(shards):
    with pytest.raises(IndexError, match="no document"):
        shards.document(shards.num_documents)


@pytest.mark.parametrize("name", ["tokens-00001.bin", "borders-00000.bin"])
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0"])
def test_a_cut_or_longer_file_is_refused_by_its_name(name, change, folder):
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(TrainingError, match=rf"{name} has .* bytes where .* were written; copy"):
        Shards.open(folder)


@pytest.mark.parametrize("name", ["tokens-00000.bin", "borders-00001.bin"])
def test_an_absent_file_is_refused_by_its_name(name, folder):
    (folder / name).unlink()
    with pytest.raises(TrainingError, match=f"{name}: No such file"):
        Shards.open(folder)


def test_a_changed_border_is_seen_when_opened(folder):
    flip_byte(folder / "borders-00000.bin")
    with pytest.raises(TrainingError, match=r"borders-00000\.bin is not as it was written"):
        Shards.open(folder)


def test_a_changed_token_is_seen_by_verify(folder):
    Shards.open(folder).verify()
    flip_byte(folder / "tokens-00001.bin")
    with pytest.raises(TrainingError, match=r"tokens-00001\.bin is not as it was written"):
        Shards.open(folder).verify()


def test_an_id_that_no_token_has_is_seen_when_it_is_read(folder):
    path = folder / "tokens-00000.bin"
    path.write_bytes(b"\xff\xff" + path.read_bytes()[2:])
    with pytest.raises(TrainingError, match=r"id 65535 .* is not below 257"):
        Shards.open(folder).read(0, 4)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["header"].pop("dtype"),
        lambda value: value["header"].update(dtype="float32"),
        lambda value: value["header"]["tokenizer"].update(eos_token_id=400),
        lambda value: value["parts"].pop("heldout"),
        lambda value: value["parts"]["train"][0].update(num_tokens=-3),
        lambda value: value["parts"]["train"][0].update(color="red"),
        lambda value: value.update(drops=[]),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(change, folder):
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(TrainingError, match=r"manifest\.json is damaged"):
        Shards.open(folder)


def test_a_torn_manifest_is_refused(folder):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match="not sound JSON"):
        Shards.open(folder)


def test_a_foreign_manifest_is_refused(folder):
    (folder / "manifest.json").write_text('{"format": "phiscope-store", "version": 1}')
    with pytest.raises(TrainingError, match="no corpus that this version"):
        Shards.open(folder)


def test_an_unfinished_or_absent_corpus_is_told_apart(folder):
    (folder / "manifest.json").rename(folder / "unfinished.json")
    with pytest.raises(TrainingError, match="unfinished corpus; build it again"):
        Shards.open(folder)
    with pytest.raises(TrainingError, match=r"no corpus, as it has no manifest\.json"):
        Shards.open(folder / "elsewhere")


def test_a_part_without_documents_is_refused(tokenizer, tmp_path):
    build([write_sentence(0)], tokenizer, tmp_path / "corpus")
    with pytest.raises(TrainingError, match="no heldout documents"):
        Shards.open(tmp_path / "corpus", "heldout")


def test_the_digest_is_of_the_tokens(folder, texts, tokenizer, tmp_path):
    build(texts[:-1], tokenizer, tmp_path / "other", heldout_share=0.4)
    build(texts, tokenizer, tmp_path / "same", heldout_share=0.4)
    folders = (folder, tmp_path / "same", tmp_path / "other")
    first, same, other = ({Shards.open(one, part).digest for part in PARTS} for one in folders)
    assert first == same != other
    assert len(first) == 2


PARTS = ("train", "heldout")


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
