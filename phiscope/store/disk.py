"""The file operations that a store's safety rests on, as methods of one object.

What was written is kept only after `sync`, a new name only after `sync_folder`. Tests hand in a
disk that fails at a chosen operation; an `OSError` becomes a `StoreError` that names the file.
"""

import errno
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from phiscope.errors import StoreError

Result = TypeVar("Result")

_REMEDIES = {
    errno.ENOSPC: "make room and resume",
    errno.EDQUOT: "make room and resume",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "give a folder that can be written",
    errno.EPERM: "give a folder that can be written",
    errno.EIO: "the disk may be failing; resume when it is mended",
}


class Disk:
    """The disk as it is; `operations` counts what was done to it."""

    def __init__(self) -> None:
        self.operations = 0

    def perform(self, verb: str, path: Path, action: Callable[[], Result]) -> Result:
        """Do one operation; `StoreError` naming the file if the system refuses."""
        self.operations += 1
        try:
            return action()
        except OSError as error:
            raise make_error(verb, path, error) from error

    def make_folder(self, path: Path) -> None:
        """Make a folder, and those above it, that survive a crash."""
        if path.is_dir():
            return
        if not path.parent.is_dir():
            self.make_folder(path.parent)
        self.perform("make the folder", path, lambda: path.mkdir(exist_ok=True))
        self.sync_folder(path.parent)

    def create(self, path: Path) -> io.FileIO:
        """An empty file for writing, in place of what had that name."""
        return self.perform("create", path, lambda: io.FileIO(path, "w"))

    def extend(self, path: Path) -> io.FileIO:
        """A file that is there, for writing at its end."""
        return self.perform("open", path, lambda: io.FileIO(os.open(path, _APPEND), "a"))

    def write(self, path: Path, file: io.FileIO, data: Any) -> None:
        """Write all of a buffer; `path` is the file's, for the error."""
        view = memoryview(data).cast("B")
        self.perform("write", path, lambda: _write_all(file, view))

    def truncate(self, path: Path, file: io.FileIO, size: int) -> None:
        self.perform("cut", path, lambda: file.truncate(size))

    def sync(self, path: Path, file: io.FileIO) -> None:
        """Return when what was written to the file is on the disk."""
        self.perform("sync", path, lambda: os.fsync(file.fileno()))

    def rename(self, source: Path, target: Path) -> None:
        self.perform("rename to", target, lambda: source.replace(target))

    def link(self, source: Path, target: Path) -> None:
        """A second name for a file; `StoreError` where the file system has none."""
        self.perform("link", target, lambda: os.link(source, target))

    def remove(self, path: Path) -> None:
        self.perform("remove", path, lambda: path.unlink(missing_ok=True))

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in the folder are on the disk."""
        self.perform("sync the folder", folder, lambda: _sync_folder(folder))

    def replace(self, path: Path, data: bytes) -> None:
        """Give a file new contents, whole or not at all."""
        temporary = path.with_name(f".{path.name}.tmp")
        with self.create(temporary) as file:
            self.write(temporary, file, data)
            self.sync(temporary, file)
        self.rename(temporary, path)
        self.sync_folder(path.parent)

    def replace_json(self, path: Path, value: Mapping[str, Any]) -> None:
        """The same for JSON, whose bytes depend on the value alone."""
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
        self.replace(path, text.encode() + b"\n")


_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC


def make_error(verb: str, path: Path, error: OSError) -> StoreError:
    """The error for a system call that failed on a file of the store."""
    remedy = _REMEDIES.get(error.errno or 0, "resume when that is mended")
    return StoreError(f"cannot {verb} {path}: {error.strerror or error}; {remedy}")


def _write_all(file: io.FileIO, view: memoryview) -> None:
    while len(view):
        view = view[file.write(view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that keeps names without being asked
            raise
    finally:
        os.close(descriptor)
