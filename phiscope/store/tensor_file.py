"""Files that appear whole or not at all, and safetensors files whose tensors come in pieces.

`checkpoint.safetensors_format` writes tensors that are in memory; here a tensor may be larger than
the memory, and no torch is needed.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiscope.errors import StoreError
from phiscope.store.disk import Disk

MAX_HEADER_BYTES = 100_000_000
"""What safetensors' own reader accepts."""
ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor to be written: its dtype in safetensors' words, and its rows piece by piece.

    bfloat16 comes as its bits in uint16.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[NDArray[Any]]

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"no dtype {self.dtype!r}; choose from {', '.join(ITEM_BYTES)}")

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@contextmanager
def write_whole(path: Path, disk: Disk | None = None) -> Iterator[Callable[[Any], None]]:
    """Gives a function that writes to a file, which takes its name once all is on the disk.

    An error leaves no file, or the one that was there before.
    """
    disk = disk or Disk()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with disk.create(temporary) as file:
            yield lambda data: disk.write(temporary, file, data)
            disk.sync(temporary, file)
        disk.rename(temporary, path)
    except BaseException:
        with suppress(StoreError):
            disk.remove(temporary)
        raise
    disk.sync_folder(path.parent)


def write_tensor_file(
    path: Path,
    entries: Mapping[str, TensorEntry],
    metadata: Mapping[str, str],
    disk: Disk | None = None,
) -> None:
    """Write a safetensors file; of each tensor one piece at a time is in memory."""
    header = _make_header(entries, metadata)
    if len(header) > MAX_HEADER_BYTES:
        raise StoreError(
            f"the header of {path.name} would take {len(header):,} bytes, and safetensors allows"
            f" {MAX_HEADER_BYTES:,}; write fewer rows or shorter ids, or a .npy file"
        )
    with write_whole(path, disk) as write:
        write(header)
        for name, entry in entries.items():
            _write_pieces(write, name, entry)


def _make_header(entries: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, entry in entries.items():
        begin, end = end, end + entry.num_bytes
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def _write_pieces(write: Callable[[Any], None], name: str, entry: TensorEntry) -> None:
    size = 0
    for piece in entry.pieces:
        write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8))
        size += piece.nbytes
    if size != entry.num_bytes:
        raise ValueError(
            f"{name!r} was announced with {entry.num_bytes:,} bytes and came with {size:,}"
        )
