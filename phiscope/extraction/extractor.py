"""Extractor: the states of one shard's rows, from rows of input to the columns of a store.

Shard by shard and alone: batches are planned from the shard's own rows, so any machine, any order
and any interruption give the same bytes.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from phiscope.activations.capture import plan_capture
from phiscope.activations.edits import Edit, Knockout
from phiscope.activations.inspection import make_inspection
from phiscope.cache import Cache, PrefixCache
from phiscope.errors import UnsupportedError
from phiscope.extraction.collecting import Collector, Sink
from phiscope.extraction.inputs import Row
from phiscope.extraction.options import ExtractOptions
from phiscope.extraction.pieces import Piece, Text, Wave, plan_waves
from phiscope.extraction.reader import RowReader
from phiscope.extraction.readings import find_depth, make_readings, make_schema
from phiscope.extraction.selection import Tokens, parse_selection
from phiscope.model import PhiForCausalLM, refuse_dropout
from phiscope.packing import Packed, pack_lengths, plan_batches, read_tokens
from phiscope.store import ShardKeys, ShardOrigin
from phiscope.tokenizer import Tokenizer

_PREFIX_BYTES = 384_000_000
"""Keys and values of prefixes in memory at once."""
_SHARD_ROWS = 512
_SHARD_BYTES = 256_000_000
_TYPICAL_TOKENS = 256
"""Of a text, where the size of a shard of token rows is guessed."""
Entry = dict[str, Any]
Watch = Callable[[int, int], None]
"""Told of each forward's sequences and tokens when it is done."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A shard's rows as they will be run."""

    begin: int
    end: int
    texts: tuple[Text, ...]
    errors: tuple[Entry, ...]
    """Bad rows and warnings, as errors.jsonl has them."""
    input_sha256: str
    num_rows: int
    """Rows of the table, if none turns out bad."""

    @property
    def num_tokens(self) -> int:
        return sum(len(text.ids) for text in self.texts)


class Extractor:
    """A model, its tokenizer, and what is to be read of every text."""

    def __init__(
        self,
        model: PhiForCausalLM,
        tokenizer: Tokenizer,
        options: ExtractOptions,
        edits: Sequence[Edit] = (),
    ) -> None:
        refuse_dropout(model)
        loaded = None if model.lm_head is not None else len(model.model.layers)
        self.model = model
        self.tokenizer = tokenizer
        self.options = options
        self.edits = make_inspection(model.config, (), edits, loaded_layers=loaded).edits
        self.readings = make_readings(options, model.config, loaded)
        self.schema = make_schema(self.readings)
        self.depth = find_depth(self.readings)
        self.device = model.model.embed_tokens.weight.device
        self._select = parse_selection(options.tokens)
        self._check()

    @property
    def window(self) -> int:
        """Tokens that are read at once at most."""
        return self.options.window or self._context

    @property
    def stride(self) -> int:
        return self.options.stride or max(1, self.window // 2)

    @property
    def token_budget(self) -> int:
        """Tokens of one forward."""
        return self.options.token_budget or (16384 if self.device.type == "cuda" else 2048)

    @property
    def shard_size(self) -> int:
        """Input rows of a shard: a power of two, so that the states of one are no great loss."""
        if self.options.shard_size is not None:
            return self.options.shard_size
        a_text = 1 if self.schema.level == "texts" else _TYPICAL_TOKENS
        fitting = max(16, _SHARD_BYTES // (self.schema.row_bytes * a_text))
        return min(_SHARD_ROWS, 1 << (fitting.bit_length() - 1))

    def read(self, rows: Sequence[Row], begin: int) -> Shard:
        """Tokenize rows and choose their tokens; rows that cannot be served become errors."""
        texts: list[Text] = []
        errors: list[Entry] = []
        encoded = iter(self._encode(rows))
        first = 0
        for row in rows:
            try:
                text = self._read_row(row, next(encoded), first, errors)
            except (ValueError, TypeError) as fault:
                errors.append(_entry(row, error=str(fault)))
                continue
            texts.append(text)
            first += self._count_rows(text)
        return Shard(
            begin, begin + len(rows), tuple(texts), tuple(errors), digest_rows(rows), first
        )

    def run(self, shard: Shard, sink: Sink, watch: Watch | None = None) -> Collector:
        """Run a shard's texts into a sink, telling `watch` of what was done."""
        collector = Collector(shard.texts, sink)
        waves = list(self._plan(shard.texts))
        for wave in waves:
            collector.expect([*wave.prefixes, *wave.pieces])
        for wave in waves:
            self._run_wave(wave, collector, watch or _ignore)
        return collector

    def plan(self, shard: Shard) -> list[list[Piece]]:
        """The batches that `run` would run."""
        waves = self._plan(shard.texts)
        return [batch for wave in waves for batch in self._batches(wave)]

    def describe(self, shard: Shard, collector: Collector) -> tuple[ShardOrigin, NDArray[Any]]:
        """What a store records of a finished shard, and a mask (rows,) of those it keeps."""
        bad = collector.faults
        warnings = {
            (owner, name): f"{count} values of {name} beyond {self.options.dtype} were clamped"
            for (owner, name), count in sorted(collector.clamped.items())
            if owner not in bad
        }
        entries = [
            *shard.errors,
            *(_entry(shard.texts[n].row, error=fault) for n, fault in bad.items()),
            *(_entry(shard.texts[n].row, warning=text) for (n, _), text in warnings.items()),
        ]
        origin = ShardOrigin(
            begin=shard.begin,
            end=shard.end,
            num_tokens=sum(len(t.ids) for n, t in enumerate(shard.texts) if n not in bad),
            input_sha256=shard.input_sha256,
            clamped=self._count_clamped(collector),
            errors=tuple(sorted(entries, key=lambda entry: entry["index"])),
        )
        return origin, self._mask(shard, bad)

    def keys(self, shard: Shard) -> ShardKeys:
        """The leading columns of a shard's table."""
        texts = shard.texts
        if self.schema.level == "texts":
            ids = pa.array([text.row.id for text in texts], pa.string())
            lengths = np.array([len(text.ids) for text in texts], dtype=np.int32)
            hashes = pa.array([text.row.sha256 for text in texts], pa.string())
            return ShardKeys(ids=ids, first=lengths, second=hashes)
        counts = [len(text.positions) for text in texts]
        places = np.repeat(np.arange(len(texts)), counts)
        ids = pa.array([text.row.id for text in texts], pa.string()).take(pa.array(places))
        positions = [text.positions.astype(np.int32) for text in texts]
        tokens = [np.asarray(text.ids, dtype=np.int32)[text.positions] for text in texts]
        none = np.zeros(0, dtype=np.int32)
        return ShardKeys(
            ids=ids,
            first=np.concatenate([none, *positions]),
            second=np.concatenate([none, *tokens]),
        )

    def _check(self) -> None:
        """Refuse what would silently be something else than was asked for."""
        if self.window > self._context:
            raise ValueError(f"window {self.window} exceeds the model's context of {self._context}")
        if self.stride > self.window:
            raise ValueError(f"stride {self.stride} would skip tokens: the window is {self.window}")
        for edit in self.edits:
            self._check_edit(edit)

    def _check_edit(self, edit: Edit) -> None:
        if edit.point.name == "logits" and any(reading.part for reading in self.readings):
            raise UnsupportedError(
                "the logits of an extraction are those that the head gives, so an edit of logits"
                " would do nothing; edit final_norm, or capture"
            )
        is_placed = edit.positions is not None or isinstance(edit, Knockout)
        if is_placed and self.options.overflow == "window":
            raise UnsupportedError(
                f"the edit at {edit.point} counts positions from the start of a text, and a window"
                " starts anywhere; extract with overflow='truncate'"
            )

    @property
    def _context(self) -> int:
        return self.model.config.max_position_embeddings

    @property
    def _looks_ahead(self) -> bool:
        """Whether tokens after the last that counts matter, and sequences cannot be cut.

        A key receives from all queries behind it, and an edit is shown its whole sequence.
        """
        received = any(reading.point.name == "attn_received" for reading in self.readings)
        return received or bool(self.edits)

    def _encode(self, rows: Sequence[Row]) -> Iterator[Sequence[int]]:
        """The ids of every row, nothing for a bad one."""
        sound = [row.text for row in rows if row.text is not None]
        encoded = iter(self.tokenizer.encode_batch(sound))
        for row in rows:
            yield row.ids or () if row.text is None else next(encoded)

    def _read_row(self, row: Row, ids: Sequence[int], first: int, errors: list[Entry]) -> Text:
        if row.fault is not None:
            raise ValueError(row.fault)
        if row.ids is not None:
            read_tokens(ids, self.model.config)
        if not ids:
            raise ValueError("empty")
        ids = self._cut(row, ids, errors)
        positions = self._select(Tokens(row, ids, self.tokenizer))
        if not len(positions):
            raise ValueError(f"no token fits {self.options.tokens!r}")
        end = len(ids) if self._looks_ahead else int(positions[-1]) + 1
        return Text(row, tuple(ids), positions.astype(np.int64), first, end)

    def _cut(self, row: Row, ids: Sequence[int], errors: list[Entry]) -> Sequence[int]:
        length, limit = len(ids), self.window
        if length <= limit or self.options.overflow == "window":
            return ids
        if self.options.overflow == "error":
            raise ValueError(f"{length} tokens exceed the {limit} that are read at once")
        errors.append(_entry(row, warning=f"of {length} tokens the first {limit} were read"))
        return ids[:limit]

    def _count_rows(self, text: Text) -> int:
        return 1 if self.schema.level == "texts" else len(text.positions)

    def _plan(self, texts: Sequence[Text]) -> Iterator[Wave]:
        return plan_waves(
            texts, window=self.window, stride=self.stride, prefix_budget=self._prefix_budget()
        )

    def _prefix_budget(self) -> int | None:
        """Tokens of prefixes at once; None where prefixes cannot be shared."""
        if self._looks_ahead or not self.options.share_prefixes:
            return None
        config = self.model.config
        layers = config.num_hidden_layers if self.depth is None else self.depth
        dtype = self.model.model.hidden_dtype
        per_token = PrefixCache.count_token_bytes(config, max(1, layers), dtype)
        return max(1, min(self.token_budget, _PREFIX_BYTES // per_token))

    def _batches(self, wave: Wave) -> Iterator[list[Piece]]:
        if wave.prefixes:
            yield list(wave.prefixes)
        costs = [piece.cost for piece in wave.pieces]
        for batch in plan_batches(costs, self.token_budget):
            yield [wave.pieces[n] for n in batch]

    def _run_wave(self, wave: Wave, collector: Collector, watch: Watch) -> None:
        prefixes: PrefixCache | None = None
        for pieces in self._batches(wave):
            cache: Cache | None = None
            if wave.prefixes and prefixes is None:
                cache = prefixes = PrefixCache(self._pack(pieces))
                packed = prefixes.packed
            else:
                packed = self._pack(pieces)
                if prefixes is not None:
                    cache = prefixes.continued([p.prefix for p in pieces if p.prefix is not None])
            self._run_batch(pieces, packed, cache, collector)
            watch(len(pieces), packed.num_tokens)

    def _pack(self, pieces: Sequence[Piece]) -> Packed:
        lengths, starts = [len(p.ids) for p in pieces], [p.start for p in pieces]
        return pack_lengths(lengths, starts=starts, device=self.device)

    def _run_batch(
        self, pieces: Sequence[Piece], packed: Packed, cache: Cache | None, collector: Collector
    ) -> None:
        ids = torch.tensor([i for piece in pieces for i in piece.ids], device=self.device)
        edits = plan_capture(packed, (), edits=self.edits, whole=True) if self.edits else None
        reader = RowReader(
            packed,
            pieces,
            self.readings,
            collector,
            self.model.logits,
            edits,
            self.options.token_ids,
        )
        with torch.inference_mode():
            self.model.model(ids, packed, cache=cache, plan=reader)
        reader.finish()

    def _count_clamped(self, collector: Collector) -> dict[str, int]:
        counts = {reading.column.name: 0 for reading in self.readings}
        for (owner, name), count in collector.clamped.items():
            if owner not in collector.faults:
                counts[name] += count
        return counts

    def _mask(self, shard: Shard, bad: dict[int, str]) -> NDArray[Any]:
        kept = np.ones(shard.num_rows, dtype=bool)
        for number in bad:
            text = shard.texts[number]
            first = number if self.schema.level == "texts" else text.first
            kept[first : first + self._count_rows(text)] = False
        return kept


def digest_rows(rows: Sequence[Row]) -> str:
    """A fingerprint of input rows: what they are called and what they hold."""
    digest = hashlib.sha256()
    for row in rows:
        content = row.fault if row.fault is not None else row.sha256
        parts = (row.id, content, row.prompt_chars, row.span, row.label)
        digest.update(repr(parts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _entry(row: Row, **what: str) -> Entry:
    return {"index": row.index, "id": row.id, **what}


def _ignore(_pieces: int, _tokens: int) -> None:
    pass
