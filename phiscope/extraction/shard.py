"""A shard: some rows of the input as they will be run, and what the table says of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phiscope.extraction.collecting import Collector
from phiscope.extraction.inputs import Row
from phiscope.extraction.pieces import Text
from phiscope.store import Column, Schema, ShardKeys, ShardOrigin

Entry = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Shard:
    """A shard's rows as they will be run."""

    begin: int
    end: int
    texts: tuple[Text, ...]
    schema: Schema
    errors: tuple[Entry, ...] = ()
    """Bad rows and warnings, as errors.jsonl has them."""
    input_sha256: str = ""

    @property
    def num_tokens(self) -> int:
        return sum(len(text.ids) for text in self.texts)

    @property
    def num_rows(self) -> int:
        """Rows of the table, if none turns out bad."""
        return self.span(len(self.texts) - 1).stop if self.texts else 0

    def span(self, number: int) -> slice:
        """The rows of the table that belong to a text."""
        text = self.texts[number]
        return slice(text.first, text.first + count_rows(text, self.schema))

    def keys(self) -> ShardKeys:
        """The leading columns of the table."""
        ids = pa.array([text.row.id for text in self.texts], pa.string())
        if self.schema.level == "texts":
            lengths = np.array([len(text.ids) for text in self.texts], dtype=np.int32)
            hashes = pa.array([text.row.sha256 for text in self.texts], pa.string())
            return ShardKeys(ids=ids, first=lengths, second=hashes)
        owners = np.repeat(np.arange(len(self.texts)), [len(text.positions) for text in self.texts])
        positions = [text.positions.astype(np.int32) for text in self.texts]
        tokens = [np.asarray(text.ids, dtype=np.int32)[text.positions] for text in self.texts]
        none = np.zeros(0, dtype=np.int32)
        return ShardKeys(
            ids=ids.take(pa.array(owners)),
            first=np.concatenate([none, *positions]),
            second=np.concatenate([none, *tokens]),
        )

    def describe(self, collector: Collector) -> tuple[ShardOrigin, NDArray[np.bool_]]:
        """What a store records once the texts were run, and a mask (rows,) of those it keeps."""
        bad, columns = collector.faults, {column.name: column for column in self.schema.columns}
        clamped = {
            (owner, name): count
            for (owner, name), count in sorted(collector.clamped.items())
            if owner not in bad
        }
        entries = [
            *self.errors,
            *(make_entry(self.texts[owner].row, error=fault) for owner, fault in bad.items()),
            *(
                make_entry(self.texts[owner].row, warning=_warn(columns[name], count))
                for (owner, name), count in clamped.items()
            ),
        ]
        origin = ShardOrigin(
            begin=self.begin,
            end=self.end,
            num_tokens=sum(len(t.ids) for owner, t in enumerate(self.texts) if owner not in bad),
            input_sha256=self.input_sha256,
            clamped=_sum_columns(columns, clamped),
            errors=tuple(sorted(entries, key=lambda entry: entry["index"])),
        )
        kept = np.ones(self.num_rows, dtype=bool)
        for owner in bad:
            kept[self.span(owner)] = False
        return origin, kept


def count_rows(text: Text, schema: Schema) -> int:
    """Rows of the table that a text has."""
    return 1 if schema.level == "texts" else len(text.positions)


def digest_rows(rows: Sequence[Row]) -> str:
    """A fingerprint of input rows: what they are called and what they hold."""
    digest = hashlib.sha256()
    for row in rows:
        content = row.fault if row.fault is not None else row.sha256
        parts = (row.id, content, row.prompt_chars, row.span, row.label)
        digest.update(repr(parts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def make_entry(row: Row, **what: str) -> Entry:
    """A line of errors.jsonl."""
    return {"index": row.index, "id": row.id, **what}


def _warn(column: Column, count: int) -> str:
    return f"{count} values of {column.name} beyond {column.dtype} were clamped"


def _sum_columns(
    columns: Mapping[str, Column], clamped: Mapping[tuple[int, str], int]
) -> dict[str, int]:
    counts = dict.fromkeys(columns, 0)
    for (_, name), count in clamped.items():
        counts[name] += count
    return counts
