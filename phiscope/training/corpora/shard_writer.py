"""The writing of a part's shards: documents into files of ids and of borders.

A shard is gathered in memory and written at once. Both its files are whole and on the disk, under
their names, before it is recorded.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phiscope.errors import TrainingError
from phiscope.store.disk import Disk
from phiscope.training.corpora.documents import Document
from phiscope.training.corpora.folder import borders_name, check_files, tokens_name
from phiscope.training.corpora.records import Header, Part, ShardRecord


class ShardWriter:
    """Writes the shards of one part; `records` are those there are."""

    def __init__(
        self, folder: Path, part: Part, header: Header, records: Sequence[ShardRecord], disk: Disk
    ) -> None:
        self.records = list(records)
        self._folder = folder
        self._part = part
        self._header = header
        self._disk = disk
        self._waiting: list[np.ndarray[Any, Any]] = []
        self._last: Document | None = None
        self._num_tokens = self._num_bytes = 0
        self._unmet = list(records)
        for number, record in enumerate(records):
            check_files(folder, part, number, record, header)

    def names(self) -> set[str]:
        """The files of the recorded shards."""
        numbers = range(len(self.records))
        kinds = (tokens_name, borders_name)
        return {name(self._part, number) for name in kinds for number in numbers}

    def has(self, document: Document) -> bool:
        """Whether a document is in a shard that was there at the beginning.

        Raises `TrainingError` if the input is not the one that these shards were made of.
        """
        if self._unmet and self._unmet[0].num_rows <= document.num_rows:
            record = self._unmet.pop(0)
            place = (document.num_rows, document.input_sha256)
            if (record.num_rows, record.input_sha256) != place:
                raise self._changed(record)
            return True
        return bool(self._unmet)

    def check_met(self) -> None:
        """Raise `TrainingError` if the input ended before the shards of an earlier build did."""
        if self._unmet:
            raise self._changed(self._unmet[0])

    def add(self, document: Document, ids: Sequence[int]) -> bool:
        """Take a document with its ids; whether that finished a shard."""
        end = self._header["tokenizer"]["eos_token_id"]
        self._waiting.append(np.array([*ids, end], dtype=self._header["dtype"]))
        self._last = document
        self._num_tokens += len(ids) + 1
        self._num_bytes += len(document.text.encode())
        if self._num_tokens < self._header["options"]["shard_tokens"]:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Write what waits as a shard, if anything does."""
        if self._last is None:
            return
        number = len(self.records)
        tokens = _as_bytes(np.concatenate(self._waiting))
        borders = _as_bytes(np.cumsum([len(one) for one in self._waiting], dtype=np.int64))
        self._disk.replace(self._folder / tokens_name(self._part, number), tokens)
        self._disk.replace(self._folder / borders_name(self._part, number), borders)
        record = ShardRecord(
            num_documents=len(self._waiting),
            num_tokens=self._num_tokens,
            num_bytes=self._num_bytes,
            num_rows=self._last.num_rows,
            input_sha256=self._last.input_sha256,
            tokens_sha256=hashlib.sha256(tokens).hexdigest(),
            borders_sha256=hashlib.sha256(borders).hexdigest(),
        )
        self.records.append(record)
        self._waiting, self._last, self._num_tokens, self._num_bytes = [], None, 0, 0

    def _changed(self, record: ShardRecord) -> TrainingError:
        return TrainingError(
            f"{self._folder} was begun with another input: they differ before row"
            f" {record.num_rows}; give another folder"
        )


def _as_bytes(values: np.ndarray[Any, Any]) -> bytes:
    """Little-endian, on every machine."""
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
