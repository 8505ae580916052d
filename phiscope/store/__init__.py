"""Stores: hidden states of a corpus on the disk, written crash-safe, read without copying."""

from phiscope.store.column import ColumnView, widen
from phiscope.store.disk import Disk
from phiscope.store.manifest import set_verification
from phiscope.store.mapped import Span
from phiscope.store.merge import merge_stores
from phiscope.store.reader import Store, open_store
from phiscope.store.records import ShardOrigin, ShardRecord
from phiscope.store.schema import Column, Schema
from phiscope.store.scratch import Scratch
from phiscope.store.shard import ShardKeys, write_shard
from phiscope.store.writer import StoreWriter

__all__ = [
    "Column",
    "ColumnView",
    "Disk",
    "Schema",
    "Scratch",
    "ShardKeys",
    "ShardOrigin",
    "ShardRecord",
    "Span",
    "Store",
    "StoreWriter",
    "merge_stores",
    "open_store",
    "set_verification",
    "widen",
    "write_shard",
]
