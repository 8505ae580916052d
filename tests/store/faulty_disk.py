"""A disk that dies, or fails, at a chosen operation; and what it holds after the power was cut."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from phiscope.errors import StoreError
from phiscope.store.disk import Disk


class Killed(BaseException):
    """The process is no more: nothing that it would have done to the disk happens."""


class UnsyncedDisk(Disk):
    """Syncs nothing, for the tests' speed."""

    def sync(self, path, file):
        self.perform("sync", path, lambda: None)

    def sync_folder(self, folder):
        self.perform("sync the folder", folder, lambda: None)


class FailingDisk(UnsyncedDisk):
    """Refuses operation number `fatal` with an error of the system's."""

    def __init__(self, fatal, number):
        super().__init__()
        self.fatal = fatal
        self.number = number

    def perform(self, verb, path, action):
        if self.operations == self.fatal:
            action = self.refuse
        return super().perform(verb, path, action)

    def refuse(self):
        raise OSError(self.number, os.strerror(self.number))


class MortalDisk(UnsyncedDisk):
    """Kills the process at operation number `fatal`, right after it, or halfway through a write.

    Files and names that were not synced by then are lost by `lose_contents` and `lose_names`: the
    worst that POSIX allows.
    """

    def __init__(self, attic: Path, fatal: int | None = None, *, torn=False, links=True):
        super().__init__()
        self.links = links
        self.fatal = fatal
        self.torn = torn
        self.verbs: list[str] = []
        self._dead = False
        self._attic = attic
        self._synced: dict[int, int] = {}
        self._cut: dict[Path, bytes] = {}
        self._undo: list[tuple[Path, Callable[[], None]]] = []

    def perform(self, verb, path, action):
        if self._dead:
            raise Killed
        self.verbs.append(verb)
        result = super().perform(verb, path, action)
        if self.operations - 1 == self.fatal:
            self._dead = True
            if isinstance(result, io.FileIO):
                result.close()
            raise Killed
        return result

    def make_folder(self, path):
        if not path.is_dir():
            self._remember(path.parent, lambda: shutil.rmtree(path, ignore_errors=True))
        super().make_folder(path)

    def create(self, path):
        if not path.exists():
            self._remember(path.parent, lambda: path.unlink(missing_ok=True))
        file = super().create(path)
        self._synced[path.stat().st_ino] = 0
        return file

    def write(self, path, file, data):
        if self.torn and self.operations == self.fatal:
            data = memoryview(data).cast("B")[: memoryview(data).nbytes // 2]
        self._synced.setdefault(os.fstat(file.fileno()).st_ino, path.stat().st_size)
        super().write(path, file, data)

    def truncate(self, path, file, size):
        self._cut[path] = path.read_bytes()
        super().truncate(path, file, size)

    def sync(self, path, file):
        super().sync(path, file)
        status = os.fstat(file.fileno())
        self._synced[status.st_ino] = status.st_size
        self._cut.pop(path, None)

    def rename(self, source, target):
        before = self._keep(target)

        def undo():
            target.replace(source)
            if before is not None:
                before.replace(target)

        self._remember(target.parent, undo)
        super().rename(source, target)

    def link(self, source, target):
        if not self.links:
            raise StoreError("this file system has no links")
        self._remember(target.parent, lambda: target.unlink(missing_ok=True))
        super().link(source, target)

    def remove(self, path):
        before = self._keep(path)
        if before is not None:
            self._remember(path.parent, lambda: before.replace(path))
        super().remove(path)

    def sync_folder(self, folder):
        super().sync_folder(folder)
        self._undo = [(place, undo) for place, undo in self._undo if place != folder]

    def lose_names(self, *, oldest=False):
        """Undo what was done to names and not synced: all of it, or the first thing alone."""
        for _, undo in self._undo[:1] if oldest else reversed(self._undo):
            undo()
        self._undo = []

    def forget_syncs(self, folder):
        """Take the contents of a folder's files for such as were never synced."""
        for path in folder.iterdir():
            self._synced[path.stat().st_ino] = 0

    def lose_contents(self, folder):
        """Take back what was written to the folder's files, or cut from them, and not synced."""
        for path, data in self._cut.items():
            path.write_bytes(data)
        for path in folder.iterdir() if folder.exists() else ():
            status = path.stat()
            if self._synced.get(status.st_ino, status.st_size) < status.st_size:
                os.truncate(path, self._synced[status.st_ino])

    def _remember(self, folder, undo):
        if not self._dead:
            self._undo.append((folder, undo))

    def _keep(self, path):
        """A second name for a file, outside the folder, from which it can come back."""
        if self._dead or not path.exists():
            return None
        self._attic.mkdir(exist_ok=True)
        name = self._attic / str(len(list(self._attic.iterdir())))
        os.link(path, name)
        return name
