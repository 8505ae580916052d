"""A filter as a function of Arrow tables: Ray Data's `map_batches` and `datasets.map` take it.

It is sent to other processes whole, with the filter in it. Each loads the model when its first
table comes, checks that it is the one that the filter was fitted on, and keeps it.
"""

import pickle
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from phiscope.config import read_config
from phiscope.errors import InputError
from phiscope.extraction.cluster.arrow_function import ArrowFunction
from phiscope.extraction.inputs import Fields
from phiscope.extraction.options import make_options
from phiscope.extraction.readings import make_schema
from phiscope.extraction.recipe import Recipe
from phiscope.filtering.filter import Filter
from phiscope.filtering.origin import Origin
from phiscope.loading import ModelSpec

_ADDED = (("score", pa.float64()), ("keep", pa.bool_()), ("error", pa.string()))


def make_filter_function(
    filter_folder: str | Path,
    *,
    model: str | Path,
    fields: Fields | None = None,
    mode: str = "auto",
    revision: str | None = None,
    num_threads: int | None = None,
    any_model: bool = False,
) -> "FilterFunction":
    """A picklable function from tables of texts to the same with their scores.

    `fields` says which column holds the texts. Texts are read as those of the filter's store were:
    which tokens, and what happens to long ones. Raises `FilterError` for a model with another
    config here, and for one with other weights where it is loaded, unless `any_model`.
    """
    filter = Filter.open(filter_folder)
    spec = ModelSpec(name=str(model), mode=mode, revision=revision, num_threads=num_threads)
    config = read_config(spec.find())
    origin = filter.origin
    if not any_model:
        origin.check_config(config)
        spec = replace(spec, layers=origin.find_depth(config))  # what its fingerprint covers
    return FilterFunction(
        filter=filter,
        states=_make_states_function(spec, filter, fields or Fields()),
        any_model=any_model,
    )


@dataclass(frozen=True, kw_only=True)
class FilterFunction:
    """Takes a table, and gives it with `score`, `keep` and `error`.

    A text that cannot be served has its fault in `error` and nulls before it, so that no row is
    lost.
    """

    filter: Filter = field(repr=False)
    states: ArrowFunction
    any_model: bool

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows stay in their order; `InputError` for a table that has such columns already."""
        taken = [name for name, _ in _ADDED if name in table.column_names]
        if taken:
            raise InputError(f"the table has a column {taken[0]!r} already; rename it")
        if not self.any_model:
            _check(self.states, self.filter.origin)
        parts = [self._score(batch) for batch in self.states(table.to_batches())]
        schema = pa.schema([pa.field(name, kind) for name, kind in _ADDED])
        added = pa.Table.from_batches(parts, schema)
        for name, kind in _ADDED:
            table = table.append_column(pa.field(name, kind), added[name])
        return table

    def _score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Of a batch of states, with nulls where there are none."""
        there = batch.column("error").is_null().to_numpy(zero_copy_only=False)
        sound = batch.filter(pa.array(there))
        columns = {name: _read_states(sound.column(name)) for name in self.filter.features.columns}
        scores = np.zeros(len(there))
        scores[there] = self.filter.score_columns(columns, "these texts")
        arrays = [
            pa.array(scores, mask=~there),
            pa.array(self.filter.keep(scores), mask=~there),
            batch.column("error"),
        ]
        return pa.record_batch(arrays, names=[name for name, _ in _ADDED])


def _make_states_function(spec: ModelSpec, filter: Filter, fields: Fields) -> ArrowFunction:
    """What computes the features, in fp32, of texts read as the filter's store was."""
    origin = filter.origin
    options = make_options(
        points=filter.features.points,
        pool=filter.features.reducers,
        tokens=origin.tokens,
        overflow=origin.overflow,
        window=origin.window,
        stride=origin.stride if origin.overflow == "window" else None,
        dtype="float32",
    )
    recipe = Recipe(model=spec, options=options).settle()
    table = make_schema(recipe.readings())
    return ArrowFunction(recipe=pickle.dumps(recipe), fields=fields, table=table, for_spark=False)


@lru_cache(maxsize=1)
def _check(states: ArrowFunction, origin: Origin) -> None:
    """Once in a process, for it hashes the weights."""
    origin.check_model(states.load())


def _read_states(column: pa.FixedSizeListArray) -> NDArray[np.float32]:
    """Lists of fixed size as rows (n, width)."""
    width = column.type.list_size
    flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, width)
