"""Stores of made-up states, for tests of what reads them."""

import hashlib

import numpy as np

from phiscope.store import Schema, ShardKeys, ShardOrigin, StoreWriter
from phiscope.store.reader import open_store

JOB = {"model": {"weights": "1f2e"}}


def make_values(column, num_rows):
    """Numbers that say where they are: row + 0.25 * place, of the column's dtype."""
    numbers = np.arange(num_rows)[:, None] + 0.25 * np.arange(column.width)
    if column.dtype == "bfloat16":
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype(column.numpy_dtype)


def make_text_store(folder, columns, ids, *, shard_size=4, values=None, **options):
    """One row per text; text i has i + 1 tokens."""
    keys = [(i + 1, hashlib.sha256(name.encode()).hexdigest()) for i, name in enumerate(ids)]
    schema = Schema(level="texts", columns=tuple(columns))
    rows = [(name, *key) for name, key in zip(ids, keys, strict=True)]
    shards = [rows[begin : begin + shard_size] for begin in range(0, len(rows), shard_size)]
    return _write(folder, schema, shards, shard_size, values or {}, **options)


def make_token_store(folder, columns, texts, *, shard_size=2, values=None, **options):
    """One row per token of texts, which are (id, token ids)."""
    schema = Schema(level="tokens", columns=tuple(columns))
    shards = [
        [
            (name, position, token)
            for name, tokens in texts[begin : begin + shard_size]
            for position, token in enumerate(tokens)
        ]
        for begin in range(0, len(texts), shard_size)
    ]
    return _write(folder, schema, shards, shard_size, values or {}, **options)


def _write(folder, schema, shards, shard_size, values, *, clamped=None):
    num_rows = sum(map(len, shards))
    known = {column.name: make_values(column, num_rows) for column in schema.columns} | values
    options = {"job": JOB, "shard_size": shard_size, "resume": False}
    with StoreWriter.open(folder, schema, **options) as writer:
        first = 0
        for number, rows in enumerate(shards):
            _write_shard(writer, schema, number, rows, known, first, clamped or {})
            first += len(rows)
        writer.finish()
    return open_store(folder)


def _write_shard(writer, schema, number, rows, values, first, clamped):
    begin = number * writer.header.shard_size
    origin = ShardOrigin(
        begin=begin,
        end=begin + len({row[0] for row in rows}),
        num_tokens=len(rows) if schema.level == "tokens" else sum(row[1] for row in rows),
        input_sha256=hashlib.sha256(repr(rows).encode()).hexdigest(),
        clamped=clamped if number == 0 else {},
    )
    names = ("ids", "first", "second")
    keys = ShardKeys(**dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    with writer.scratch(len(rows)) as scratch:
        for column in schema.columns:
            scratch.put(column.name, 0, values[column.name][first : first + len(rows)])
        writer.write_shard(number, keys, scratch, origin=origin)
