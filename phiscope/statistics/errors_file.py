"""The bad rows of a count, in a file beside it: `NAME.errors.jsonl`, if there are any.

The statistics know how many of its bytes are of rows they count; a job that goes on cuts the rest.
"""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from phiscope.errors import StoreError
from phiscope.store import Disk


class ErrorFile:
    """Lines of JSON behind the first `size` bytes of a file; a context manager."""

    def __init__(self, out: Path, size: int) -> None:
        self.path = out.with_name(f"{out.name}.errors.jsonl")
        self._disk = Disk()
        self._size = size
        self._file: io.FileIO | None = None
        if not size:
            self._disk.remove(self.path)
        elif not self.path.exists() or self.path.stat().st_size < size:
            raise StoreError(f"{self.path} has lost rows that {out} knows of; measure anew")
        else:
            self._file = self._disk.extend(self.path)
            self._disk.truncate(self.path, self._file, size)

    def __enter__(self) -> "ErrorFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, entries: Iterable[Mapping[str, Any]]) -> int:
        """Write bad rows and warnings; the file's size then."""
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()
        if lines:
            self._file = self._file or self._disk.create(self.path)
            self._disk.write(self.path, self._file, lines)
            self._size += len(lines)
        return self._size

    def sync(self) -> None:
        """Return when all of it is on the disk."""
        if self._file is not None:
            self._disk.sync(self.path, self._file)
            self._disk.sync_folder(self.path.parent)
