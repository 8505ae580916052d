"""A weight file held open, and where each tensor lies in it.

Files are read with positioned reads: a mapped file that is cut short while in use kills the
process with SIGBUS, a short read is a clean error. Integer weights are mapped, so that all
processes share them, and others where that was asked for; a model watches what it has mapped.
"""

import mmap
import os
import stat
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from phiscope.errors import CheckpointError

MAX_HEADER_BYTES = 100 * 2**20
_POPULATE_READ = 22  # as Linux numbers it
CHUNK_BYTES = 4 * 2**20
"""Bytes read at a time: what a core's cache holds, so that a chunk is checked while it is there."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: rows of its first dimension lie one after the other from `offset` on."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: "WeightFile"
    offset: int

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the first dimension; a scalar is one row."""
        return torch.Size(self.shape[1:]).numel() * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """All of it, in its own dtype."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        self.file.read_into(view_bytes(tensor), self.offset, f"tensor {self.name!r}")
        return tensor

    def view(self, mapping: mmap.mmap) -> torch.Tensor:
        """It, lying in its mapped file."""
        size = torch.Size(self.shape)
        flat = torch.frombuffer(mapping, dtype=self.dtype, count=size.numel(), offset=self.offset)
        return flat.view(size)


def join_tensors(
    name: str, tensors: Sequence[StoredTensor], shape: tuple[int, ...]
) -> StoredTensor | None:
    """Tensors that lie one behind the other in a file as one of that shape; None if they do not."""
    first, end = tensors[0], tensors[0].offset
    for tensor in tensors:
        if (tensor.file, tensor.dtype, tensor.offset) != (first.file, first.dtype, end):
            return None
        end += tensor.num_bytes
    joined = replace(first, name=name, shape=shape)
    is_aligned = first.offset % first.dtype.itemsize == 0
    return joined if is_aligned and joined.num_bytes == end - first.offset else None


class WeightFile:
    """A regular file, open for reading from any thread; a context manager.

    `size` and the identity are taken at opening: `check_unchanged` tells whether they still hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open(path)
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        self._identity = (status.st_size, status.st_mtime_ns)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise CheckpointError(f"{path} is not a regular file")

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def read_into(self, buffer: memoryview, offset: int, what: str) -> None:
        """Fill the buffer with the bytes from `offset` on; `CheckpointError` if there are fewer."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"cannot read {what} of {self.path}: {error}") from error
            if count == 0:
                raise CheckpointError(
                    f"{self.path} is too short for {what}: it was cut, so fetch it again"
                )
            done += count

    def read(self, offset: int, size: int, what: str) -> bytes:
        """Those bytes; the size must have been checked against `self.size` before."""
        buffer = bytearray(size)
        self.read_into(memoryview(buffer), offset, what)
        return bytes(buffer)

    @property
    def can_be_mapped(self) -> bool:
        """Whether its tensors lie in it as they are."""
        return self.path.suffix == ".safetensors" and self.size > 0

    def map(self) -> mmap.mmap:
        """The whole file as memory of this process: what is written there never reaches the file.

        Every process that maps it shares the pages that none has written to.
        """
        try:
            mapping = mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot map {self.path}: {error}") from error
        with suppress(OSError):  # at once what Linux has cached, if it can: not page by page
            mapping.madvise(_POPULATE_READ)
        return mapping

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if somebody wrote to the file since it was opened."""
        _check_unchanged(self._descriptor, self._identity, self.path)

    def watch(self) -> "Watch":
        """Goes on telling whether the file is unchanged when this is closed."""
        return Watch(self.path, os.dup(self._descriptor), self._identity)


class Watch:
    """A file in which tensors lie, open for as long as somebody holds this."""

    def __init__(self, path: Path, descriptor: int, identity: tuple[int, int]) -> None:
        self._of = (descriptor, identity, path)
        weakref.finalize(self, os.close, descriptor)

    def check_unchanged(self) -> None:
        """As `WeightFile.check_unchanged`."""
        _check_unchanged(*self._of)

    def __deepcopy__(self, _: object) -> "Watch":
        return self

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Unwatched, ()  # what is pickled holds the tensors themselves


class Unwatched:
    """Stands for a file that is not used any more."""

    def check_unchanged(self) -> None:
        """Never raises."""


def _check_unchanged(descriptor: int, identity: tuple[int, int], path: Path) -> None:
    status = os.fstat(descriptor)
    if (status.st_size, status.st_mtime_ns) != identity:
        raise CheckpointError(f"{path} changed while it was in use; load it again")


def view_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, as writable bytes."""
    data: memoryview = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return data


def _open(path: Path) -> int:
    try:
        # O_NONBLOCK: opening a pipe must not wait for its writer.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {error.strerror}") from error
