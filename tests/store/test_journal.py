import pytest
from store.faulty_disk import UnsyncedDisk
from store.small_job import JOB, open_writer, write_shard

from phiscope.errors import StoreError
from phiscope.store.journal import read_journal


@pytest.fixture
def journal(tmp_path):
    """The journal of a job with two of its shards."""
    with open_writer(tmp_path, UnsyncedDisk()) as writer:
        write_shard(writer, 1)
        write_shard(writer, 0)
    return tmp_path / "journal.jsonl"


def test_journal_cut_anywhere_in_its_last_line_has_the_lines_before(journal):
    data = journal.read_bytes()
    last = data.rindex(b"\n", 0, -1) + 1
    for size in (*range(last, len(data), 7), len(data) - 1):
        journal.write_bytes(data[:size])
        entries = read_journal(journal.parent)
        assert set(entries.records) == {1}
        assert entries.end == last
    journal.write_bytes(data)
    assert set(read_journal(journal.parent).records) == {0, 1}


@pytest.mark.parametrize("tail", [b"\0" * 40, b'{"shard": \r\n\n\r{', b"\xff\n", b"[1]\n"])
def test_garbage_after_the_last_line_counts_as_torn(journal, tail):
    data = journal.read_bytes()
    journal.write_bytes(data + tail)
    entries = read_journal(journal.parent)
    assert set(entries.records) == {0, 1}
    assert entries.end == len(data)


def test_header_is_what_the_job_was_opened_with(journal):
    header = read_journal(journal.parent).header
    assert header.job == JOB
    assert header.notes == {"model": "a model"}


@pytest.mark.parametrize("line", [2, 3])
def test_damaged_line_before_a_sound_one_is_refused(journal, line):
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[line - 1] = b"\0" + lines[line - 1][1:]
    journal.write_bytes(b"".join([*lines, b'{"num_shards": 3}\n']))
    with pytest.raises(StoreError, match=rf"journal\.jsonl is damaged at line {line}"):
        read_journal(journal.parent)


@pytest.mark.parametrize("text", ["", "{}\n", '{"format": "phiscope-journal", "version": 9}\n'])
def test_journal_of_another_kind_is_refused(journal, text):
    journal.write_text(text)
    with pytest.raises(StoreError, match="no journal that this version of phiscope can read"):
        read_journal(journal.parent)


def test_record_that_is_none_is_refused(journal):
    with journal.open("a") as file:
        file.write('{"shard": {"number": -1}}\n')
    with pytest.raises(StoreError, match="no record of a shard"):
        read_journal(journal.parent)
