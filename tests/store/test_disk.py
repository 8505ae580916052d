import errno
import os

import pytest
from store.faulty_disk import FailingDisk

from phiscope.errors import StoreError
from phiscope.store import Disk
from phiscope.store import disk as disk_module


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; make room and resume"),
        (errno.EROFS, "Read-only file system; give a folder that can be written"),
        (errno.EIO, "Input/output error; the disk may be failing"),
        (errno.ENODEV, "No such device; resume when that is mended"),
    ],
)
def test_fault_54_error_names_the_file_and_the_remedy(tmp_path, number, remedy):
    with pytest.raises(StoreError, match=rf"cannot create {tmp_path}/\.a\.tmp: {remedy}"):
        FailingDisk(0, number).replace(tmp_path / "a", b"")


@pytest.mark.parametrize("fatal", range(5))
def test_replaced_file_is_the_old_or_the_new_one(tmp_path, fatal):
    path = tmp_path / "a"
    Disk().replace(path, b"old")
    with pytest.raises(StoreError):
        FailingDisk(fatal, errno.EIO).replace(path, b"new one")
    assert path.read_bytes() == (b"old" if fatal < 4 else b"new one")


def test_json_depends_on_its_value_alone(tmp_path):
    Disk().replace_json(tmp_path / "a", {"b": 1, "a": [None, "\u00e9"]})
    Disk().replace_json(tmp_path / "b", {"a": [None, "\u00e9"], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes().endswith(b'"b": 1\n}\n')


def test_folder_is_made_with_those_above_it(tmp_path):
    disk = Disk()
    disk.make_folder(tmp_path / "a" / "b")
    assert disk.operations == 4  # two made, two synced
    disk.make_folder(tmp_path / "a" / "b")
    assert disk.operations == 4


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_file_system_that_cannot_sync_folders_is_taken_as_it_is(tmp_path, monkeypatch, number):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk_module.os, "fsync", refuse)
    if number == errno.EINVAL:
        Disk().sync_folder(tmp_path)
    else:
        with pytest.raises(StoreError, match=f"cannot sync the folder {tmp_path}"):
            Disk().sync_folder(tmp_path)
