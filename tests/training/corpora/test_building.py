import json

import pytest
from small_corpora import build, make_byte_tokenizer, read_files, write_sentence
from store.faulty_disk import FailingDisk, Killed, MortalDisk

from phiscope.errors import StoreError, TrainingError
from phiscope.store.lock import FolderLock
from phiscope.training.corpora.shards import Shards

OPTIONS = {"heldout_share": 0.4, "shard_tokens": 900}


def read_texts(folder, tokenizer, part="train"):
    shards = Shards.open(folder, part)
    ids = (shards.document(number) for number in range(shards.num_documents))
    return [tokenizer.decode(one[:-1].tolist()) for one in ids]


def test_documents_are_read_back_in_order_and_the_held_out_ones_apart(texts, tokenizer, folder):
    train, heldout = (read_texts(folder, tokenizer, part) for part in ("train", "heldout"))
    assert sorted(train + heldout) == sorted(texts)
    assert train == [text for text in texts if text in train]
    assert heldout == [text for text in texts if text in heldout]
    assert len(list(folder.glob("tokens-*.bin"))) > 1
    assert len(list(folder.glob("heldout-tokens-*.bin"))) > 1


def test_an_end_written_in_a_text_does_not_end_its_document(tokenizer, tmp_path):
    build(["one <|endoftext|> two", "three"], tokenizer, tmp_path / "corpus")
    shards = Shards.open(tmp_path / "corpus")
    assert shards.read(0, shards.num_tokens).tolist().count(tokenizer.eos_token_id) == 2


def test_the_manifest_counts_what_there_is(texts, tokenizer, tmp_path):
    manifest = build([*texts, texts[0], ""], tokenizer, tmp_path / "corpus")
    assert manifest.num_rows == 22
    assert manifest.count("num_documents") == 20
    assert manifest.count("num_bytes") == sum(map(len, texts))
    assert manifest.count("num_tokens") == sum(map(len, texts)) + 20
    assert manifest.drops["duplicate"] == manifest.drops["empty"] == 1
    written = json.loads((tmp_path / "corpus" / "manifest.json").read_text())
    assert written == manifest.to_json()


def test_large_vocabularies_take_four_bytes(texts, tmp_path):
    large = make_byte_tokenizer(2**16)
    assert large.eos_token_id == 2**16
    manifest = build(texts, large, tmp_path / "corpus")
    assert manifest.header["dtype"] == "uint32"
    assert read_texts(tmp_path / "corpus", large) == texts
    assert Shards.open(tmp_path / "corpus").document(0)[-1] == 2**16


def test_every_reader_gives_the_same_corpus(texts, tokenizer, tmp_path):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    jsonl, parquet, lines = (tmp_path / f"texts.{end}" for end in ("jsonl", "parquet", "txt"))
    jsonl.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pq.write_table(pa.table({"text": texts}), parquet)
    lines.write_text("\n".join(texts))
    dataset = datasets.Dataset.from_dict({"text": texts})
    inputs = [texts, iter(texts), jsonl, parquet, lines, dataset]
    for number, data in enumerate(inputs):
        build(data, tokenizer, tmp_path / str(number), **OPTIONS)
    written = [read_files(tmp_path / str(number)) for number in range(len(inputs))]
    assert all(files == written[0] for files in written)


@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_build_goes_on_to_the_same_bytes(torn, texts, tokenizer, tmp_path):
    whole = MortalDisk(tmp_path / "attic")
    build(texts, tokenizer, tmp_path / "whole", whole, **OPTIONS)
    wanted = read_files(tmp_path / "whole")
    for fatal in range(whole.operations):
        folder = tmp_path / str(fatal)
        disk = MortalDisk(tmp_path / "attic", fatal, torn=torn)
        with pytest.raises(Killed):
            build(texts, tokenizer, folder, disk, **OPTIONS)
        disk.lose_names()
        disk.lose_contents(folder)
        build(texts, tokenizer, folder, **OPTIONS)
        assert read_files(folder) == wanted, disk.verbs[-1]


def test_a_shard_that_was_finished_is_not_written_again(texts, tokenizer, tmp_path):
    interrupt(texts, tokenizer, tmp_path / "corpus", **OPTIONS)
    records = json.loads((tmp_path / "corpus" / "unfinished.json").read_text())["parts"]
    names = [f"tokens-{number:05d}.bin" for number in range(len(records["train"]))]
    before = {path: path.stat().st_ino for path in map((tmp_path / "corpus").joinpath, names)}
    build(texts, tokenizer, tmp_path / "corpus", **OPTIONS)
    assert len(before) > 1
    assert {path: path.stat().st_ino for path in before} == before


def test_near_duplicates_are_remembered_across_an_interruption(texts, tokenizer, tmp_path):
    texts = [write_sentence(seed, 100) for seed in range(8)]
    texts += [text + " once more" for text in texts]
    options = {"near_duplicates": 0.8}
    manifest = build(texts, tokenizer, tmp_path / "whole", **options)
    interrupt(texts, tokenizer, tmp_path / "resumed", **options)
    build(texts, tokenizer, tmp_path / "resumed", **options)
    assert manifest.drops["near_duplicate"] == 8
    assert read_files(tmp_path / "resumed") == read_files(tmp_path / "whole")


def test_a_finished_folder_is_left_as_it_is(texts, tokenizer, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    build(texts, tokenizer, folder, heldout_share=0.4)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heldout_share": 0.3}, r"options\.heldout_share is 0\.4 there and 0\.3 here"),
        ({"heldout_share": 0.4, "min_bytes": 2}, r"options\.min_bytes is 1 there and 2 here"),
    ],
)
def test_other_options_are_refused_by_the_first_difference(
    options, message, texts, tokenizer, folder
):
    with pytest.raises(TrainingError, match=message):
        build(texts, tokenizer, folder, **options)


def test_another_tokenizer_is_refused(texts, folder):
    with pytest.raises(TrainingError, match=r"tokenizer\.sha256"):
        build(texts, make_byte_tokenizer(300), folder, heldout_share=0.4)


def test_another_input_is_refused_when_finished(texts, tokenizer, folder):
    with pytest.raises(TrainingError, match="num_rows is 20 there and 21 here"):
        build([*texts, "more"], tokenizer, folder, heldout_share=0.4)
    with pytest.raises(TrainingError, match="input_sha256"):
        build(["other", *texts[1:]], tokenizer, folder, heldout_share=0.4)


@pytest.mark.parametrize("change", [lambda texts: ["other", *texts[1:]], lambda texts: texts[:2]])
def test_another_input_is_refused_when_interrupted(change, texts, tokenizer, tmp_path):
    interrupt(texts, tokenizer, tmp_path / "corpus", **OPTIONS)
    with pytest.raises(TrainingError, match="begun with another input"):
        build(change(texts), tokenizer, tmp_path / "corpus", **OPTIONS)


def test_a_folder_of_other_things_is_refused(texts, tokenizer, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match=r"no corpus and holds thesis\.txt"):
        build(texts, tokenizer, tmp_path)


def test_two_builds_cannot_write_one_folder(texts, tokenizer, tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(StoreError, match="another job is writing"):
        build(texts, tokenizer, tmp_path)
    lock.release()


def test_a_full_disk_is_told_with_its_remedy(texts, tokenizer, tmp_path):
    (tmp_path / "corpus").mkdir()
    with pytest.raises(StoreError, match="make room and resume"):
        build(texts, tokenizer, tmp_path / "corpus", FailingDisk(9, 28))


def test_an_input_of_which_nothing_is_kept_is_refused_with_the_reasons(tokenizer, tmp_path):
    with pytest.raises(TrainingError, match="left of 3 rows; dropped: 1 empty, 2 short"):
        build(["a", "", "b"], tokenizer, tmp_path / "corpus", min_bytes=2)


def interrupt(texts, tokenizer, folder, **options):
    """Begin a build that is killed while it writes its last shard."""
    attic = folder.with_name("attic")
    whole = MortalDisk(attic)
    build(texts, tokenizer, folder.with_name("counted"), whole, **options)
    with pytest.raises(Killed):
        build(texts, tokenizer, folder, MortalDisk(attic, whole.operations - 10), **options)
    assert (folder / "unfinished.json").exists()
