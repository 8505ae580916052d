"""A job of three shards for the tests of stores: any way of writing it gives the same bytes."""

import hashlib
from pathlib import Path

import numpy as np

from phiscope.store import Column, Schema, ShardKeys, ShardOrigin, StoreWriter

SHARD_SIZE = 4
NUM_INPUT_ROWS = 10  # the last shard is short
BAD_ROW = 5
SCHEMA = Schema(
    level="texts",
    columns=(
        Column(name="resid_post.1.mean", dtype="float16", shape=(6,)),
        Column(name="z.1.last", dtype="bfloat16", shape=(2, 3)),
    ),
)
JOB = {"model": {"weights": "1f00", "layers": 2}, "points": ["resid_post.1", "z.1"]}
NUM_SHARDS = 3


def states(column: Column) -> np.ndarray:
    """The values of all input rows, bad ones included."""
    generator = np.random.default_rng(len(column.name))
    values = generator.standard_normal((NUM_INPUT_ROWS, *column.shape)).astype(np.float32)
    if column.dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(column.numpy_dtype)


STATES = {column.name: states(column) for column in SCHEMA.columns}


def open_writer(folder, disk=None, *, resume=True, job=JOB, **changes):
    known = {"notes": {"model": "a model"}, "shard_size": SHARD_SIZE} | changes
    return StoreWriter.open(folder, SCHEMA, job=job, resume=resume, disk=disk, **known)


def write_shard(writer: StoreWriter, number: int) -> None:
    """Write one shard, its rows put in two pieces and the wrong order."""
    begin = number * SHARD_SIZE
    rows = np.arange(begin, min(begin + SHARD_SIZE, NUM_INPUT_ROWS))
    shas = [hashlib.sha256(str(row).encode()).hexdigest() for row in rows]
    bad = [{"index": row, "id": f"text-{row}", "error": "it is empty"} for row in [BAD_ROW]]
    with writer.scratch(len(rows)) as scratch:
        for name, values in STATES.items():
            scratch.put(name, 1, values[rows[1:]])
            scratch.put(name, 0, values[rows[:1]])
        writer.write_shard(
            number,
            ShardKeys(ids=[f"text-{row}" for row in rows], first=rows + 1, second=shas),
            scratch,
            origin=ShardOrigin(
                begin=begin,
                end=begin + len(rows),
                num_tokens=int(sum(rows + 1)),
                input_sha256=hashlib.sha256("".join(shas).encode()).hexdigest(),
                clamped={"resid_post.1.mean": number},
                errors=tuple(entry for entry in bad if entry["index"] in rows),
            ),
            kept=rows != BAD_ROW,
        )


def write_store(folder: Path, disk=None, shards=range(NUM_SHARDS)) -> None:
    """Write the store, or what is left of it."""
    with open_writer(folder, disk) as writer:
        for number in shards:
            if number not in writer.done:
                write_shard(writer, number)
        writer.finish()


def write_part(folder: Path, shards, disk=None) -> Path:
    """Write some of the shards, as one of several machines does."""
    with open_writer(folder, disk) as writer:
        for number in shards:
            if number not in writer.done:
                write_shard(writer, number)
        writer.finish_part(NUM_SHARDS)
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    """All that is in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
