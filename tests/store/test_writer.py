import errno
import os
from pathlib import Path

import pytest
from store.faulty_disk import FailingDisk, UnsyncedDisk
from store.small_job import (
    BAD_ROW,
    JOB,
    NUM_SHARDS,
    SCHEMA,
    SHARD_SIZE,
    STATES,
    open_writer,
    read_files,
    write_shard,
    write_store,
)

from phiscope.errors import StoreError
from phiscope.store import (
    Column,
    Disk,
    Schema,
    ShardKeys,
    ShardOrigin,
    StoreWriter,
    open_store,
)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The files of a job that was left alone."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    write_store(folder, UnsyncedDisk())
    return read_files(folder)


def test_bytes_do_not_depend_on_the_order_of_shards(tmp_path, expected):
    write_store(tmp_path / "store", shards=reversed(range(NUM_SHARDS)))
    assert read_files(tmp_path / "store") == expected


def test_finished_folder_has_nothing_else(expected):
    shards = {f"data-{number:05d}-of-{NUM_SHARDS:05d}.arrow" for number in range(NUM_SHARDS)}
    others = {"dataset_info.json", "errors.jsonl", "manifest.json", "state.json"}
    assert expected.keys() == shards | others


def test_bad_rows_are_in_errors_and_not_in_the_table(tmp_path):
    write_store(tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert [entry["index"] for entry in store.errors] == [BAD_ROW]
    assert f"text-{BAD_ROW}" not in store.ids
    assert store.manifest["num_errors"] == 1


def test_errors_are_in_the_order_of_the_input(tmp_path):
    entries = [{"index": row, "id": str(row), "error": "it is empty"} for row in range(8)]
    with open_writer(tmp_path / "store", UnsyncedDisk()) as writer:
        for number, indices in enumerate([(3, 0, 2), (7, 4)]):
            errors = tuple(entries[index] for index in indices)
            begin = number * SHARD_SIZE
            origin = ShardOrigin(
                begin=begin, end=begin + 4, num_tokens=0, input_sha256="", errors=errors
            )
            with writer.scratch(0) as scratch:
                keys = ShardKeys(ids=[], first=[], second=[])
                writer.write_shard(number, keys, scratch, origin=origin)
        writer.finish()
    assert open_store(tmp_path / "store").errors == [entries[row] for row in (0, 2, 3, 4, 7)]


def test_manifest_counts_rows_tokens_and_clamped_values(tmp_path):
    write_store(tmp_path / "store")
    manifest = open_store(tmp_path / "store").manifest
    assert manifest["num_rows"] == 9
    assert manifest["num_input_rows"] == 10
    assert manifest["num_tokens"] == sum(range(1, 11))
    assert manifest["clamped"] == {"resid_post.1.mean": 0 + 1 + 2}
    assert manifest["job"] == JOB
    assert manifest["notes"] == {"model": "a model"}


def test_input_without_rows_becomes_a_store_of_one_empty_shard(tmp_path):
    with open_writer(tmp_path / "store") as writer:
        writer.finish()
    store = open_store(tmp_path / "store")
    assert len(store) == 0
    assert [path.name for path in tmp_path.glob("store/*.arrow")] == ["data-00000-of-00001.arrow"]


def test_nothing_is_left_of_errors_where_there_were_none(tmp_path):
    with open_writer(tmp_path / "store") as writer:
        write_shard(writer, 0)
        writer.finish()
    assert not (tmp_path / "store" / "errors.jsonl").exists()


def test_finished_store_is_finished_when_resumed(tmp_path, expected):
    write_store(tmp_path / "store")
    disk = Disk()
    with open_writer(tmp_path / "store", disk) as writer:
        assert writer.finished
        assert set(writer.done) == set(range(NUM_SHARDS))
        writer.finish()
    assert disk.operations == 0
    assert read_files(tmp_path / "store") == expected


def test_interrupted_job_leaves_the_errors_so_far(tmp_path, expected):
    writer = open_writer(tmp_path / "store")
    write_shard(writer, 1)
    writer.interrupt()
    assert str(BAD_ROW) in (tmp_path / "store" / "errors.jsonl").read_text()
    write_store(tmp_path / "store")
    assert read_files(tmp_path / "store") == expected


def test_notes_are_those_of_the_first_run(tmp_path, expected):
    with open_writer(tmp_path / "store") as writer:
        write_shard(writer, 0)
    with open_writer(tmp_path / "store", notes={"model": "renamed"}) as writer:
        for number in range(1, NUM_SHARDS):
            write_shard(writer, number)
        writer.finish()
    assert read_files(tmp_path / "store") == expected


def test_leftovers_of_a_killed_job_are_removed_when_it_resumes(tmp_path):
    folder = tmp_path / "store"
    with open_writer(folder) as writer:
        write_shard(writer, 0)
    leftovers = [".shard-00001.arrow.1f00.tmp", "shard-00001.arrow", ".scratch-abc.tmp"]
    for name in leftovers:
        (folder / name).write_bytes(b"half")
    (folder / "my notes.txt").write_text("mine")
    with open_writer(folder):
        names = {path.name for path in folder.iterdir()}
    assert names == {".lock", "journal.jsonl", "shard-00000.arrow", "my notes.txt"}


def test_leftovers_of_a_worker_are_removed_when_the_job_ends(tmp_path, expected):
    with open_writer(tmp_path / "store") as writer:
        for number in range(NUM_SHARDS):
            write_shard(writer, number)
        (tmp_path / "store" / ".shard-00001.arrow.1f00.tmp").write_bytes(b"half")
        writer.finish()
    assert read_files(tmp_path / "store") == expected


def test_torn_line_is_cut_before_the_next_is_written(tmp_path, expected):
    folder = tmp_path / "store"
    with open_writer(folder) as writer:
        write_shard(writer, 0)
        write_shard(writer, 1)
    journal = folder / "journal.jsonl"
    os.truncate(journal, journal.stat().st_size - 9)
    with open_writer(folder) as writer:
        assert set(writer.done) == {0}
        write_shard(writer, 1)
    with open_writer(folder) as writer:
        assert set(writer.done) == {0, 1}
    write_store(folder)
    assert read_files(folder) == expected


def test_fault_54_changed_job_is_refused_with_the_difference(tmp_path):
    with open_writer(tmp_path / "store") as writer:
        write_shard(writer, 0)
    before = read_files(tmp_path / "store")
    other = {**JOB, "model": {"weights": "9c00", "layers": 2}}
    message = r'job\.model\.weights: the store has "1f00", this job has "9c00"; give another folder'
    with pytest.raises(StoreError, match=message):
        open_writer(tmp_path / "store", job=other)
    assert read_files(tmp_path / "store") == before


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"shard_size": 5}, "shard_size: the store has 4, this job has 5"),
        ({"job": {**JOB, "points": ["z.1"]}}, r'job.points: .*\["z.1"\]'),
        ({"job": {**JOB, "points": ["z.0", "z.1"]}}, r'job.points\[0\]: .* this job has "z.0"'),
        ({"job": {**JOB, "seed": 1}}, "job.seed: the store has nothing, this job has 1"),
        ({"job": {"model": JOB["model"]}}, "job.points: .* this job has nothing"),
    ],
)
def test_fault_54_every_difference_is_named(tmp_path, changes, difference):
    write_store(tmp_path / "store")
    with pytest.raises(StoreError, match=difference):
        open_writer(tmp_path / "store", **changes)


def test_fault_54_other_columns_are_refused(tmp_path):
    write_store(tmp_path / "store")
    other = Schema(level="texts", columns=(Column(name="z.1", dtype="float16", shape=(6,)),))
    with pytest.raises(StoreError, match="columns: the store has"):
        StoreWriter.open(tmp_path / "store", other, job=JOB, shard_size=4, resume=True)


def test_fault_54_second_job_on_a_folder_is_refused(tmp_path, expected):
    with open_writer(tmp_path / "store") as writer:
        write_shard(writer, 0)
        with pytest.raises(StoreError, match="another job is writing"):
            open_writer(tmp_path / "store")
        for number in range(1, NUM_SHARDS):
            write_shard(writer, number)
        writer.finish()
    assert read_files(tmp_path / "store") == expected


@pytest.mark.parametrize("finished", [True, False])
def test_fault_54_store_is_not_overwritten(tmp_path, finished):
    with open_writer(tmp_path / "store", resume=False) as writer:
        write_shard(writer, 0)
        if finished:
            writer.finish()
    before = read_files(tmp_path / "store")
    with pytest.raises(StoreError, match=r"store is not empty; resume its job"):
        open_writer(tmp_path / "store", resume=False)
    assert read_files(tmp_path / "store") == before


@pytest.mark.parametrize("resume", [True, False])
def test_fault_54_folder_of_other_things_is_left_alone(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(StoreError, match="not empty"):
        open_writer(tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_fault_54_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match="store"):
        open_writer(tmp_path / "store")


def test_fault_54_folder_that_cannot_be_made_is_named():
    with pytest.raises(StoreError, match="cannot make the folder /proc/phiscope"):
        open_writer(Path("/proc/phiscope"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_fault_54_failure_anywhere_is_named_and_earlier_shards_stay(tmp_path, expected, number):
    whole = UnsyncedDisk()
    write_store(tmp_path / "whole", whole)
    steps = range(0, whole.operations, 1 if number == errno.ENOSPC else 5)
    for fatal in steps:
        folder = tmp_path / str(fatal)
        with pytest.raises(StoreError, match=rf"cannot .* {tmp_path}.*: {os.strerror(number)}; "):
            write_store(folder, FailingDisk(fatal, number))
        write_store(folder, UnsyncedDisk())
        assert read_files(folder) == expected, fatal


def test_failed_journal_takes_no_more_lines(tmp_path):
    disk = FailingDisk(None, errno.ENOSPC)
    with open_writer(tmp_path / "store", disk) as writer:
        disk.fatal = disk.operations + 7  # the journal's line, after the shard's file
        with pytest.raises(StoreError, match=r"write .*journal\.jsonl"):
            write_shard(writer, 0)
        with pytest.raises(StoreError, match="could not be written before"):
            write_shard(writer, 1)
    with open_writer(tmp_path / "store") as writer:
        assert not writer.done


def test_failed_shard_leaves_no_file_behind(tmp_path):
    disk = FailingDisk(None, errno.ENOSPC)
    with open_writer(tmp_path / "store", disk) as writer:
        disk.fatal = disk.operations + 2
        with pytest.raises(StoreError, match="No space left on device; make room and resume"):
            write_shard(writer, 0)
        names = {path.name for path in writer.folder.iterdir()}
        assert names == {".lock", "journal.jsonl"}
        write_shard(writer, 0)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_shard_is_found_when_its_job_resumes(tmp_path, damage):
    with open_writer(tmp_path / "store") as writer:
        write_shard(writer, 0)
    path = tmp_path / "store" / "shard-00000.arrow"
    path.unlink() if damage == "missing" else os.truncate(path, 100)
    with pytest.raises(StoreError, match=r"shard-00000\.arrow"):
        open_writer(tmp_path / "store")


def test_store_with_a_gap_is_not_finished(tmp_path):
    with open_writer(tmp_path / "store") as writer:
        write_shard(writer, 0)
        write_shard(writer, 2)
        with pytest.raises(StoreError, match="no shard 1, of input row 4 on"):
            writer.finish()


def test_store_that_knows_of_more_shards_is_not_finished(tmp_path):
    with open_writer(tmp_path / "store") as writer:
        write_shard(writer, 0)
        writer.finish_part(NUM_SHARDS)
    with open_writer(tmp_path / "store") as writer, pytest.raises(StoreError, match="1 of 3"):
        writer.finish()


def test_shard_is_recorded_once(tmp_path):
    with open_writer(tmp_path / "store") as writer:
        write_shard(writer, 0)
        with pytest.raises(ValueError, match="shard 0 is in the journal already"):
            write_shard(writer, 0)


def test_closed_writer_takes_no_shards(tmp_path):
    with open_writer(tmp_path / "store") as writer:
        pass
    with pytest.raises(ValueError, match="takes no more shards"):
        write_shard(writer, 0)


def test_columns_in_the_file_are_what_was_put(tmp_path):
    write_store(tmp_path / "store")
    store = open_store(tmp_path / "store")
    kept = [row for row in range(10) if row != BAD_ROW]
    for column in SCHEMA.columns:
        assert store[column.name].numpy().tobytes() == STATES[column.name][kept].tobytes()
