import pytest

from phiscope.errors import TrainingError
from phiscope.training.corpus import Document, is_natural, read_corpus, split_documents


def test_every_document_is_on_one_side_only(documents):
    corpus = split_documents(documents, 0.2)
    assert {one.name for one in corpus.train} | {one.name for one in corpus.heldout} == {
        one.name for one in documents
    }
    assert not {one.digest for one in corpus.train} & {one.digest for one in corpus.heldout}
    assert corpus.heldout


def test_the_split_depends_on_the_text_and_not_on_order_or_name(documents):
    renamed = [Document(f"other/{one.name}", one.text) for one in reversed(documents)]
    one, other = split_documents(documents, 0.2), split_documents(renamed, 0.2)
    assert {x.text for x in one.heldout} == {x.text for x in other.heldout}


def test_a_document_that_repeats_training_text_is_not_held_out(documents):
    corpus = split_documents(documents, 0.2)
    known = corpus.train[0].text
    copies = [Document(f"copy{n}", f"{known}# copy number {n}\n") for n in range(40)]
    again = split_documents([*documents, *copies], 0.2)
    assert {x.name for x in again.heldout} == {x.name for x in corpus.heldout}


def test_equal_documents_are_read_once(folder):
    before = read_corpus([folder], stdlib=False)
    (folder / "zz_again.py").write_text((folder / "document0.py").read_text())
    assert read_corpus([folder], stdlib=False).digest == before.digest


def test_bytes_are_counted_in_utf8():
    assert Document("x", "n\u00e4her").num_bytes == 6


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "0x1234, 0x5678, 0x9012,\n" * 50,
        "\u4e2d\u6587 " * 100,
        "word " * 1000,
        "a line of text with a zero\0\n" * 50,
    ],
    ids=["short", "digits", "another script", "one line", "binary"],
)
def test_tables_and_binaries_are_no_natural_text(text):
    assert not is_natural(text)


def test_only_readable_text_files_are_read(folder):
    before = read_corpus([folder], stdlib=False)
    (folder / "latin.py").write_bytes(b"# caf\xe9 and more words of text\n" * 20)
    (folder / "data.bin").write_text("words of text in a row\n" * 20)
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "peer.py").write_text("words of another project\n" * 20)
    assert read_corpus([folder], stdlib=False).digest == before.digest


def test_a_single_file_is_a_corpus(folder):
    corpus = read_corpus([folder / "document3.py"], stdlib=False, heldout_share=0.0)
    assert [one.name for one in corpus.train] == ["document3.py"]


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"no training text at .*nowhere"):
        read_corpus([tmp_path / "nowhere"], stdlib=False)


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"give files or folders with \.py"):
        read_corpus([tmp_path], stdlib=False)
