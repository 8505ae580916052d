"""The lock that keeps two jobs from writing one folder; a killed job's lock goes with it."""

import fcntl
import os
from pathlib import Path

from phiscope.errors import StoreError
from phiscope.store.disk import make_error
from phiscope.store.folder import LOCK_NAME


class FolderLock:
    """Held from its making until `release`; `StoreError` if another job holds it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._descriptor = _open(self.path, os.O_RDWR | os.O_CREAT)
        while not _take(self._descriptor, folder, fcntl.LOCK_EX):
            os.close(self._descriptor)  # the job before removed the file meanwhile
            self._descriptor = _open(self.path, os.O_RDWR | os.O_CREAT)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def check_unlocked(folder: Path) -> None:
    """Raise `StoreError` if a job is writing the folder; changes nothing in it."""
    path = folder / LOCK_NAME
    if not path.exists():
        return
    descriptor = _open(path, os.O_RDONLY)
    try:
        _take(descriptor, folder, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise make_error("open", path, error) from error


def _take(descriptor: int, folder: Path, kind: int) -> bool:
    """Lock the file; False if it lost its name before."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StoreError(
            f"another job is writing {folder}; wait for it, or give another folder"
        ) from error
    except OSError as error:
        raise make_error("lock", folder / LOCK_NAME, error) from error
    return os.fstat(descriptor).st_nlink > 0
