import fcntl

import pytest
from store.faulty_disk import UnsyncedDisk
from store.small_job import open_writer, read_files, write_store

from phiscope.errors import StoreError
from phiscope.store.lock import FolderLock, check_unlocked


@pytest.fixture
def before_locking(monkeypatch):
    """Takes what happens between the opening of the next lock file and its locking."""
    flock = fcntl.flock

    def arrange(event):
        def late(*arguments):
            monkeypatch.undo()
            event()
            flock(*arguments)

        monkeypatch.setattr(fcntl, "flock", late)

    return arrange


def test_fault_54_lock_is_held_by_one_until_it_is_released(tmp_path):
    lock = FolderLock(tmp_path)
    for attempt in (FolderLock, check_unlocked):
        with pytest.raises(StoreError, match=f"another job is writing {tmp_path}; wait for it"):
            attempt(tmp_path)
    lock.release()
    check_unlocked(tmp_path)
    FolderLock(tmp_path).release()


def test_lock_of_a_file_that_was_just_removed_is_taken_anew(tmp_path, before_locking):
    before_locking((tmp_path / ".lock").unlink)  # as the end of another job does
    lock = FolderLock(tmp_path)
    with pytest.raises(StoreError, match="another job"):
        FolderLock(tmp_path)
    lock.release()


def test_job_that_ends_just_before_the_lock_is_not_overwritten(tmp_path, before_locking):
    folder = tmp_path / "store"
    before_locking(lambda: write_store(folder, UnsyncedDisk()))
    with pytest.raises(StoreError, match="store is not empty"):
        open_writer(folder, UnsyncedDisk(), resume=False)


def test_job_that_ends_just_before_the_lock_is_found_finished(tmp_path, before_locking):
    write_store(tmp_path / "whole", UnsyncedDisk())
    before_locking(lambda: write_store(tmp_path / "store", UnsyncedDisk()))
    with open_writer(tmp_path / "store", UnsyncedDisk()) as writer:
        assert writer.finished
    assert read_files(tmp_path / "store") == read_files(tmp_path / "whole")


def test_check_leaves_no_file(tmp_path):
    check_unlocked(tmp_path)
    assert not list(tmp_path.iterdir())
