"""Actors of a Ray job without a model, which do what the text of their shard's first row says."""

import os
import signal
from pathlib import Path

from phiscope.extraction.cluster.crew import Description, Task
from phiscope.extraction.inputs import Row
from phiscope.store import Column, Schema
from phiscope.store.header import StoreHeader


def make_header(**job):
    columns = (Column(name="resid_post.0.mean", dtype="float16", shape=(4,)),)
    schema = Schema(level="texts", columns=columns)
    return StoreHeader(schema=schema, shard_size=1, job=job, notes={})


def make_task(number, text):
    return Task(number, [Row(index=number, id=str(number), text=text)], Path("marker"))


class UnsendableError(Exception):
    """Pickled, it is what `UnsendableError("...")` would be, which cannot be."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class PlainActor:
    """The record of a shard is its number."""

    def __init__(self, header):
        self.header = header

    def ping(self):
        pass

    def describe(self):
        if self.header is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return Description("a-node", self.header)

    def make(self, number, rows, marker):
        verb, _, argument = rows[0].text.partition(" ")
        if verb == "kill" or (verb == "kill-once" and is_first(Path(argument))):
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "fail-unsendably":
            raise UnsendableError(1, 2)
        if verb == "fail":
            raise ValueError(argument)
        return number


def is_first(path):
    """Whether nobody has asked for this path before."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
