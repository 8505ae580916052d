import shutil

import pytest
from store.faulty_disk import UnsyncedDisk
from store.small_job import (
    JOB,
    NUM_SHARDS,
    open_writer,
    read_files,
    write_part,
    write_shard,
    write_store,
)

from phiscope.errors import StoreError
from phiscope.store import merge_stores


@pytest.fixture
def parts(tmp_path):
    """The shards in two parts."""
    disk = UnsyncedDisk()
    return [write_part(tmp_path / f"part-{i}", range(i, NUM_SHARDS, 2), disk) for i in range(2)]


@pytest.fixture
def whole(tmp_path):
    write_store(tmp_path / "whole", UnsyncedDisk())
    return tmp_path / "whole"


def merge(parts, out):
    merge_stores(parts, out, disk=UnsyncedDisk())
    return read_files(out)


def test_merged_parts_equal_a_single_job(tmp_path, parts, whole):
    assert merge(parts, tmp_path / "out") == read_files(whole)
    assert merge(parts, tmp_path / "out") == read_files(whole)  # again: nothing is left to do


def test_merge_uses_shards_that_several_parts_have(tmp_path, parts, whole):
    parts.append(write_part(tmp_path / "more", [1, 2], UnsyncedDisk()))
    assert merge(parts, tmp_path / "out") == read_files(whole)


def test_merge_takes_shards_of_a_part_that_did_not_end(tmp_path, parts, whole):
    with open_writer(tmp_path / "killed", UnsyncedDisk()) as writer:
        write_shard(writer, 1)
    journal = tmp_path / "killed" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"shard": {"num')
    before = read_files(tmp_path / "killed")
    assert merge([tmp_path / "killed", parts[0]], tmp_path / "out") == read_files(whole)
    assert read_files(tmp_path / "killed") == before


def test_parts_of_an_empty_input_become_an_empty_store(tmp_path):
    for name in ("part-0", "part-1"):
        with open_writer(tmp_path / name, UnsyncedDisk()) as writer:
            writer.finish_part(0)
    with open_writer(tmp_path / "whole", UnsyncedDisk()) as writer:
        writer.finish()
    parts = [tmp_path / "part-0", tmp_path / "part-1"]
    assert merge(parts, tmp_path / "out") == read_files(tmp_path / "whole")


def test_missing_shards_are_named(tmp_path, parts):
    with pytest.raises(StoreError, match=r"no part has shard 0, 2 of 3; run or resume"):
        merge(parts[1:], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_that_never_ended_are_refused(tmp_path):
    with open_writer(tmp_path / "part", UnsyncedDisk()) as writer:
        write_shard(writer, 0)
    with pytest.raises(StoreError, match="no part knows the number of shards"):
        merge([tmp_path / "part"], tmp_path / "out")


def test_parts_that_disagree_about_the_number_of_shards_are_refused(tmp_path, parts):
    with open_writer(tmp_path / "other", UnsyncedDisk()) as writer:
        writer.finish_part(7)
    with pytest.raises(StoreError, match=r"parts disagree on the number of shards: 3, 7"):
        merge([*parts, tmp_path / "other"], tmp_path / "out")


def test_parts_of_different_jobs_are_refused(tmp_path, parts):
    with open_writer(tmp_path / "other", UnsyncedDisk(), job={**JOB, "seed": 3}) as writer:
        writer.finish_part(NUM_SHARDS)
    message = "part-0 and .*other are of different jobs: job.seed is nothing there and 3 here"
    with pytest.raises(StoreError, match=message):
        merge([parts[0], tmp_path / "other"], tmp_path / "out")


def test_shards_that_differ_are_refused(tmp_path, parts):
    journal = parts[0] / "journal.jsonl"
    other = shutil.copytree(parts[0], tmp_path / "other")
    text = journal.read_text()
    (other / "journal.jsonl").write_text(text.replace('"num_tokens":10', '"num_tokens":11', 1))
    with pytest.raises(
        StoreError, match=r"other/shard-00000\.arrow and .*part-0/shard-00000\.arrow differ"
    ):
        merge([*parts, other], tmp_path / "out")


def test_damaged_shard_is_named_and_the_rest_goes_on_when_it_is_mended(tmp_path, parts, whole):
    path = parts[1] / "shard-00001.arrow"
    data = path.read_bytes()
    path.write_bytes(data[:-20] + b"\xff" + data[-19:])
    with pytest.raises(StoreError, match=r"shard-00001\.arrow is damaged: its sha256 differs"):
        merge(parts, tmp_path / "out")
    path.write_bytes(data)
    assert merge(parts, tmp_path / "out") == read_files(whole)


def test_finished_store_is_no_part(tmp_path, parts, whole):
    with pytest.raises(StoreError, match="whole is no part of a store"):
        merge([*parts, whole], tmp_path / "out")


def test_part_that_is_being_written_is_refused(tmp_path, parts):
    with (
        open_writer(parts[0], UnsyncedDisk()),
        pytest.raises(StoreError, match="another job is writing"),
    ):
        merge(parts, tmp_path / "out")


def test_merge_does_not_write_into_a_part_or_another_store(tmp_path, parts, whole):
    with pytest.raises(ValueError, match="a merge needs parts and another folder"):
        merge(parts, parts[0])
    other = tmp_path / "other"
    with open_writer(other, UnsyncedDisk(), job={**JOB, "seed": 3}) as writer:
        writer.finish()
    with pytest.raises(StoreError, match=r"belongs to another job: job\.seed"):
        merge(parts, other)


def test_merge_does_not_add_to_a_shorter_store(tmp_path, parts):
    with open_writer(tmp_path / "short", UnsyncedDisk()) as writer:
        write_shard(writer, 0)
        writer.finish()
    before = read_files(tmp_path / "short")
    with pytest.raises(StoreError, match="short has other shards than the parts"):
        merge(parts, tmp_path / "short")
    assert read_files(tmp_path / "short") == before
