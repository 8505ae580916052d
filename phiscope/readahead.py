"""Weight files read into memory while torch is still being imported.

Importing torch takes longer than reading a checkpoint that Linux has cached, and reading takes no
torch: threads copy the files meanwhile, onto huge pages, and the model is then made of the tensors
as they lie there. The copy is this process's own, whatever becomes of the file afterwards.
"""

import json
import mmap
import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CHUNK_BYTES = 16 * 2**20
MAX_THREADS = 3  # beside the one that imports
ALIGNMENT = 64
MIN_BYTES = 2**28
"""Smaller files are read sooner than threads start."""
MAX_HEADER_BYTES = 2**24
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {  # modes that take weights as they lie: their dtype
    "fp32-cpu": "F32",
    "bf16-cpu": "BF16",
    "bf16-fp32-cpu": "BF16",
    "fp16-fp32-cpu": "F16",
}
_AUTO = {"BF16", "F16"}
"""What "auto" takes as it lies; of fp32 it first asks how much memory there is."""
_GPU = "/dev/nvidiactl"

Identity = tuple[int, int, int, int, int]
"""Device, inode, size, and times of the last write and the last change."""

_copies: dict[Identity, "FileCopy"] = {}


class FileCopy:
    """The bytes of a safetensors file, which threads are still reading; its tensors are aligned."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._descriptor = self._file.fileno()
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        self.identity = identify(status)
        self._offset = -(8 + _read_header_length(self._descriptor)) % ALIGNMENT
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory has no huge pages
        self._memory = mmap.mmap(-1, self._offset + self.size, flags=private)
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._begins = iter(range(0, self.size, CHUNK_BYTES))
        self._lock = threading.Lock()
        self._num_read = 0
        self._is_wanted = True
        self._threads = [
            threading.Thread(target=self._read_all, daemon=True) for _ in range(MAX_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> memoryview | None:
        """The file's bytes when all are there; None if they could not be read."""
        for thread in self._threads:
            thread.join()
        self._file.close()
        is_whole = self._num_read == self.size
        return memoryview(self._memory)[self._offset :] if is_whole else None

    def stop(self) -> None:
        """Read no further."""
        self._is_wanted = False
        self.wait()

    def forget(self, begin: int, end: int) -> None:
        """Give back the pages that hold nothing but these bytes."""
        first = -(-(self._offset + begin) // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (self._offset + end) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if size > 0:
            self._memory.madvise(mmap.MADV_DONTNEED, first, size)

    def _read_all(self) -> None:
        with suppress(OSError):  # what is missing is counted
            for begin in self._list_begins():
                self._read(begin, min(begin + CHUNK_BYTES, self.size))

    def _list_begins(self) -> Iterator[int]:
        while True:
            with self._lock:
                begin = next(self._begins, None)
            if begin is None or not self._is_wanted:
                return
            yield begin

    def _read(self, begin: int, end: int) -> None:
        with memoryview(self._memory) as memory:
            while begin < end:
                room = memory[self._offset + begin : self._offset + end]
                count = os.preadv(self._descriptor, [room], begin)
                if count == 0:
                    raise OSError("the file was cut")
                begin += count
                with self._lock:
                    self._num_read += count


def begin(folder: str, mode: str) -> None:
    """Read the weights of a folder if a mode will take them as they lie; in doubt, do nothing.

    Nothing is checked here: whoever loads the folder does, and reads for himself what is not here.
    """
    if sys.platform != "linux" or os.path.exists(_GPU):
        return
    with suppress(Exception):  # the loader will say what is wrong, and where
        paths = _list_files(Path(folder).expanduser())
        dtypes = {dtype for path in paths for dtype in _read_dtypes(path)}
        if dtypes == {_DTYPES.get(mode)} or (
            mode == "auto" and len(dtypes) == 1 and dtypes <= _AUTO
        ):
            for path in paths:
                copy = FileCopy(path)
                _copies[copy.identity] = copy


def find(status: os.stat_result) -> FileCopy | None:
    """The copy of a file with this status, if one was begun."""
    return _copies.get(identify(status))


def end() -> None:
    """Forget the copies; what was made of them stays."""
    while _copies:
        _copies.popitem()[1].stop()


def identify(status: os.stat_result) -> Identity:
    """Changes when a file is replaced or written to."""
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_dev, status.st_ino, status.st_size, *times)


def _list_files(folder: Path) -> list[Path]:
    if (folder / _SINGLE).exists():
        paths = [folder / _SINGLE]
    else:
        index = json.loads((folder / _INDEX).read_text())
        paths = [
            folder / os.path.basename(name) for name in sorted(set(index["weight_map"].values()))
        ]
    sizes = [path.stat() for path in paths]
    is_sound = all(stat.S_ISREG(status.st_mode) for status in sizes)
    return paths if is_sound and sum(status.st_size for status in sizes) >= MIN_BYTES else []


def _read_dtypes(path: Path) -> set[str]:
    with path.open("rb") as file:
        header = json.loads(file.read(8 + _read_header_length(file.fileno()))[8:])
    return {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}


def _read_header_length(descriptor: int) -> int:
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError("no safetensors file")
    return length
