"""Costs: the operations, the memory and the bytes on the disk of what an extraction plans to do."""

import json
from collections.abc import Sequence
from math import ceil

import pyarrow as pa

from phiscope.cache import PrefixCache
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.pieces import Piece
from phiscope.extraction.progress import count_matmul_flops
from phiscope.extraction.shard import Shard
from phiscope.store.schema import BATCH_BYTES
from phiscope.wide import count_scratch_bytes

_HEAD_ROWS = 256
"""Rows whose logits are in memory at once, as in `reader`."""
_TOKEN_BYTES = 44
"""Of a text's token while its shard is at work: an integer, and whether and where it counts."""
_WARM_BYTES = 64_000_000
"""Of the libraries themselves, once they have run."""
_END_BYTES = 8
"""Of an Arrow stream."""
_FOLDER_BYTES, _COLUMN_BYTES, _SHARD_BYTES = 1_400, 90, 400
"""Of a store's JSON files: on the whole, for each column and for each shard, without names."""


class Costs:
    """What an extractor's batches and shards cost."""

    def __init__(self, extractor: Extractor) -> None:
        config, body = extractor.model.config, extractor.model.model
        self._config = config
        self._dtype = body.hidden_dtype
        self._num_blocks = len(body.layers[: extractor.depth])
        self._schema = extractor.schema
        self._token_flops = count_matmul_flops(extractor)
        self._widest = max(column.width for column in extractor.schema.columns)
        self._has_maps = any(reading.point.is_summary for reading in extractor.readings)
        self._heads = {reading.reducer for reading in extractor.readings if reading.part}
        """How rows whose logits are wanted are pooled before."""
        self._buffer_bytes = count_scratch_bytes(extractor.model)
        arrow = self._schema.arrow()
        nothing = pa.record_batch([pa.array([], field.type) for field in arrow], schema=arrow)
        self._stream_bytes = int(arrow.serialize().size) + _END_BYTES
        self._batch_bytes = int(nothing.serialize().size)

    def count_operations(self, pieces: Sequence[Piece]) -> int:
        """Floating-point operations of a batch's matrix products."""
        tokens = sum(len(piece.ids) for piece in pieces)
        pairs = sum(_count_pairs(piece.start, len(piece.ids)) for piece in pieces)
        per_pair = 4 * self._num_blocks * self._config.num_attention_heads * self._config.head_dim
        per_row = 2 * self._config.hidden_size * self._config.vocab_size
        heads = per_row * self._count_head_rows(pieces)
        return tokens * self._token_flops + pairs * per_pair + heads

    def estimate_memory(self, pieces: Sequence[Piece], num_prefix_tokens: int) -> int:
        """Bytes that a batch takes beside the model, with the keys of prefixes it goes on from."""
        tokens = sum(len(piece.ids) for piece in pieces)
        rows = sum(len(read.rows) for piece in pieces for read in piece.reads)
        config, size = self._config, self._dtype.itemsize
        logits = 3 * 4 * config.vocab_size * min(_HEAD_ROWS, self._count_head_rows(pieces))
        prefix_bytes = PrefixCache.count_token_bytes(config, self._num_blocks, self._dtype)
        return (
            tokens * self._count_live() * size
            + rows * self._widest * (size + 8)  # as they are, and in fp32 twice
            + self._count_map_bytes(pieces)
            + logits
            + num_prefix_tokens * prefix_bytes
            + self._count_key_bytes(pieces)
            + self._buffer_bytes
            + _WARM_BYTES
        )

    def estimate_shard_memory(self, shard: Shard) -> int:
        """Bytes of a shard's rows of input and of the record batches it is written in."""
        letters = sum(len(text.row.text or "") for text in shard.texts)
        writing = 2 * min(BATCH_BYTES, shard.num_rows * self._schema.row_bytes)
        return letters + _TOKEN_BYTES * shard.num_tokens + writing

    def count_shard_bytes(self, shard: Shard) -> int:
        """Bytes on the disk."""
        per_text = self._schema.level == "texts"
        counts = [1 if per_text else len(text.positions) for text in shard.texts]
        names = [len(text.row.id.encode()) for text in shard.texts]
        letters = sum(name * count for name, count in zip(names, counts, strict=True))
        batches = ceil(shard.num_rows / self._schema.batch_rows)
        errors = sum(len(json.dumps(entry)) + 1 for entry in shard.errors)
        rows = shard.num_rows * self._schema.row_bytes + letters
        file = self._stream_bytes + batches * self._batch_bytes + rows
        return file + errors + _SHARD_BYTES + self._count_names()

    def count_folder_bytes(self) -> int:
        """Bytes on the disk that no shard has a part in."""
        return _FOLDER_BYTES + _COLUMN_BYTES * len(self._schema.columns) + 2 * self._count_names()

    def _count_names(self) -> int:
        """A line of JSON for each column."""
        return sum(len(column.name) + 12 for column in self._schema.columns)

    def _count_live(self) -> int:
        """Numbers of a token that are alive at once within a block: in its MLP or its attention."""
        config = self._config
        heads = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        mlp = 3 * config.hidden_size + 2 * config.intermediate_size
        return max(mlp, 2 * config.hidden_size + 3 * heads + 3 * keys)

    def _count_map_bytes(self, pieces: Sequence[Piece]) -> int:
        """Of the largest map's scores, masked scores, weights and what is summed up of them."""
        largest = max(len(piece.ids) * (piece.start + len(piece.ids)) for piece in pieces)
        return 4 * 4 * self._config.num_attention_heads * largest if self._has_maps else 0

    def _count_key_bytes(self, pieces: Sequence[Piece]) -> int:
        """Of keys and values that are laid behind those of prefixes."""
        if not any(piece.start for piece in pieces):
            return 0
        keys = sum(piece.start + len(piece.ids) for piece in pieces)
        return keys * PrefixCache.count_token_bytes(self._config, 1, self._dtype)

    def _count_head_rows(self, pieces: Sequence[Piece]) -> int:
        reads = [read for piece in pieces for read in piece.reads]
        rows = sum(len(read.rows) for read in reads)
        return sum(rows if reducer is None else len(reads) for reducer in self._heads)


def _count_pairs(start: int, length: int) -> int:
    """Pairs of a query and a key that it sees."""
    return length * start + length * (length + 1) // 2
