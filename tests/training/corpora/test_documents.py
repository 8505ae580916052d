import pytest
from small_corpora import make_options

from phiscope.errors import InputError
from phiscope.extraction.inputs import open_source
from phiscope.training.corpora.documents import DocumentReader, digest_input


def read(data, **options):
    reader = DocumentReader(open_source(data), make_options(**options))
    return reader, list(reader)


def test_every_drop_is_counted_by_its_reason():
    rows = ["kept", "", "kept", "x\0y", "lone \udc00", 3, "a", "also kept"]
    reader, documents = read(rows, min_bytes=2)
    assert [document.text for document in documents] == ["kept", "also kept"]
    assert reader.drops == {
        "empty": 1, "surrogate": 1, "unreadable": 1, "nul": 1, "short": 1,
        "duplicate": 1, "near_duplicate": 0,
    }  # fmt: skip
    assert len(documents) + sum(reader.drops.values()) == reader.digest.num_rows == 8
    assert reader.faults == [
        "row 4: a lone surrogate at character 5",
        "row 5: a row is a text, token ids or columns, not a value of type int",
    ]


def test_near_duplicates_are_counted_apart():
    text = "one two three four five six seven eight nine ten " * 5
    reader, documents = read([text, text, text + "eleven"], near_duplicates=0.8)
    assert len(documents) == 1
    assert (reader.drops["duplicate"], reader.drops["near_duplicate"]) == (1, 1)


def test_replaced_nuls_are_counted():
    reader, documents = read(["a\0b\0", "c"], nul="replace")
    assert documents[0].text == "a\ufffdb\ufffd"
    assert reader.num_replaced == 2


def test_texts_that_differ_in_line_ends_alone_are_duplicates():
    reader, documents = read(["a\r\nb", "a\nb"])
    assert len(documents) == reader.drops["duplicate"] == 1


def test_a_document_knows_the_rows_up_to_it():
    rows = ["a", "", "b", "c"]
    reader, documents = read(rows)
    assert [document.num_rows for document in documents] == [1, 3, 4]
    for document in documents:
        before = digest_input(open_source(rows[: document.num_rows]))
        assert document.input_sha256 == before.sha256
    assert reader.digest.sha256 == documents[-1].input_sha256


def test_a_held_out_document_stays_so_when_the_share_grows():
    _, documents = read([f"text {number}" for number in range(200)])
    shares = (0.0, 0.1, 0.3, 1.0)
    sides = [{one.text for one in documents if one.is_heldout(share)} for share in shares]
    assert sides[0] < sides[1] < sides[2] < sides[3]
    assert 40 < len(sides[2]) < 80


def test_a_source_of_token_ids_is_refused(tmp_path):
    path = tmp_path / "ids.jsonl"
    path.write_text('{"input_ids": [1, 2]}\n')
    with pytest.raises(InputError, match="token ids"):
        read(path)
