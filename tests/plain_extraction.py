"""Extraction twice: as the package does it, and the plain way.

The plain way captures every token of each text alone, or of each window, and pools with numpy in
float64.
"""

import dataclasses
from math import ceil

import numpy as np
from oracle import make_model

from phiscope.api import Phi
from phiscope.config import PhiConfig
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.inputs import Row
from phiscope.extraction.options import make_options
from phiscope.extraction.selection import Tokens, parse_selection
from phiscope.runtime import MODES
from phiscope.store.column import widen
from phiscope.tokenizer import tokenizer_from_merges

CONFIG = PhiConfig(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rotary_dim=4,
    initializer_range=0.2,
)
MERGES = ("t h", "th e", "\u0120 the", "\u00c3 \u00a9", "\u00f0 \u0141", "a a")
"""One joins the first two of an emoji's four bytes, so that tokens end inside characters."""
TOLERANCES = {"float32": (1e-5, 1e-6), "float16": (6e-4, 1e-6), "bfloat16": (4e-3, 1e-6)}
"""Of each kept dtype, beside float64: relative and absolute."""
POOLS = {
    "mean": lambda x: x.mean(axis=0),
    "last": lambda x: x[-1],
    "weighted_mean": lambda x: np.average(x, axis=0, weights=np.arange(1, len(x) + 1)),
    "max": lambda x: x.max(axis=0),
    "first": lambda x: x[0],
}

LOOKING_BACK = (
    "embeddings, resid_pre.[:], ln_out.1, q.1, k.1, v.1, q_rot.1, k_rot.1, attn_entropy.[1,2], z.1,"
    " attn_out.1, mlp_pre.1, mlp_act.1, mlp_out.1, resid_post.[:], final_norm"
)
ALL_POINTS = LOOKING_BACK + ", attn_received.[0,2]"
STEM = "a stem of tokens that many begin with, "
TEXTS = (
    "the cat",
    "\u00e9\U0001f642 na\u00efve",
    "x",
    STEM + "the end",
    STEM + "another",
    "one<|endoftext|>two",
    STEM + "the end",
    STEM[:20],
)


def make_phi(**changes):
    """A small float64 model with random weights and a tokenizer of few merges."""
    model = make_model(dataclasses.replace(CONFIG, **changes))
    return Phi(model, tokenizer_from_merges(MERGES), MODES["fp32-cpu"])


def make_rows(*contents):
    """A row for each text, list of token ids, or mapping of a row's fields."""
    rows = []
    for index, content in enumerate(contents):
        if isinstance(content, str):
            content = {"text": content}
        elif not isinstance(content, dict):
            content = {"ids": tuple(content)}
        rows.append(Row(index=index, id=f"row {index}", **content))
    return rows


class Sheet:
    """A sink in memory that wants each row of each column once, in the column's dtype."""

    def __init__(self, schema, num_rows):
        self.columns = {
            c.name: np.zeros((num_rows, c.width), c.numpy_dtype) for c in schema.columns
        }
        self.missing = {name: np.ones(num_rows, bool) for name in self.columns}

    def put(self, column, first_row, values):
        rows = slice(first_row, first_row + len(values))
        assert values.dtype == self.columns[column].dtype
        assert self.missing[column][rows].sum() == len(values)
        self.columns[column][rows] = values
        self.missing[column][rows] = False


@dataclasses.dataclass
class Extracted:
    """The kept rows of some shards, one after the other."""

    columns: dict = dataclasses.field(compare=False)
    """(rows, width) of each column, as numbers."""
    bits: bytes
    """Of all columns as they would be stored."""
    keys: list
    """(id, num_tokens, sha256) or (id, pos, token_id) of each row."""
    num_tokens: int
    entries: list
    clamped: dict
    forwards: list
    """(sequences, tokens) of each."""

    @property
    def num_tokens_run(self):
        return sum(tokens for _, tokens in self.forwards)


def extract(phi, rows, *, shard_size=None, edits=(), **settings):
    """Run rows through an `Extractor`, shard by shard."""
    extractor = Extractor(phi.model, phi.tokenizer, make_options(**settings), edits)
    size = shard_size or max(1, len(rows))
    begins = range(0, len(rows), size)
    shards = [run_shard(extractor, rows[begin : begin + size], begin) for begin in begins]
    return Extracted(
        {
            column.name: np.concatenate([shard.columns[column.name] for shard in shards])
            for column in extractor.schema.columns
        },
        b"".join(shard.bits for shard in shards),
        [key for shard in shards for key in shard.keys],
        sum(shard.num_tokens for shard in shards),
        [entry for shard in shards for entry in shard.entries],
        {name: sum(s.clamped[name] for s in shards) for name in shards[0].clamped},
        [forward for shard in shards for forward in shard.forwards],
    )


def run_shard(extractor, rows, begin=0):
    forwards = []
    shard = extractor.read(rows, begin)
    sheet = Sheet(extractor.schema, shard.num_rows)
    collector = extractor.run(shard, sheet, lambda *done: forwards.append(done))
    origin, kept = shard.describe(collector)
    assert (origin.begin, origin.end) == (begin, begin + len(rows))
    assert not any(missing[kept].any() for missing in sheet.missing.values())
    stored = {name: values[kept] for name, values in sheet.columns.items()}
    return Extracted(
        {c.name: widen(stored[c.name], c.dtype) for c in extractor.schema.columns},
        b"".join(values.tobytes() for values in stored.values()),
        [key for key, keep in zip(_list_keys(shard.keys()), kept, strict=True) if keep],
        origin.num_tokens,
        list(origin.errors),
        dict(origin.clamped),
        forwards,
    )


def _list_keys(keys):
    return list(
        zip(*(np.asarray(x).tolist() for x in (keys.ids, keys.first, keys.second)), strict=True)
    )


class Plain:
    """The plain way, for one model under whatever steers it now; what was captured is kept."""

    def __init__(self, phi, points):
        self._phi = phi
        self._points = points
        self._captured = {}

    def columns(self, row, *, pool=(), tokens="all", window=64, stride=None, cut=False):
        """The row's part of every column but those of logits: (n, width) float64 each."""
        ids, chosen = self.choose(row, tokens, window if cut else None)
        states = self.states(ids, chosen, window, stride or max(1, window // 2))
        if not pool:
            return states
        pools = (pool,) if isinstance(pool, str) else pool
        return {f"{name}.{p}": POOLS[p](x)[None] for name, x in states.items() for p in pools}

    def choose(self, row, tokens, length=None):
        """The row's token ids, at most `length`, and the places of those that count."""
        ids = list(row.ids or self._phi.tokenizer.encode(row.text))[:length]
        return ids, parse_selection(tokens)(Tokens(row, ids, self._phi.tokenizer))

    def states(self, ids, chosen, window, stride):
        """Of each chosen token, what the first window that holds it gives."""
        begins = [stride * ceil(max(0, place + 1 - window) / stride) for place in chosen]
        seen = [self._capture(tuple(ids[begin : begin + window])) for begin in begins]
        places = [place - begin for place, begin in zip(chosen, begins, strict=True)]
        return {
            name: np.stack([s[name][place] for s, place in zip(seen, places, strict=True)])
            for name in (seen[0] if seen else ())
        }

    def _capture(self, ids):
        if ids not in self._captured:
            rows = self._phi.capture(list(ids), self._points)
            self._captured[ids] = {n: x[0].flatten(1).numpy() for n, x in rows.items()}
        return self._captured[ids]


def assert_equal(extracted, plain, rows, *, dtype="float32", **settings):
    """The extracted columns are those of the plain way, all rows being sound."""
    relative, absolute = TOLERANCES[dtype]
    each = [plain.columns(row, **settings) for row in rows]
    assert extracted.entries == []
    for name in each[0]:
        expected = np.concatenate([columns[name] for columns in each])
        np.testing.assert_allclose(
            extracted.columns[name], expected, rtol=relative, atol=absolute, err_msg=name
        )
