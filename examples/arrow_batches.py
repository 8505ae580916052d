"""Hidden states inside Spark or Daft: both call functions of Arrow record batches.

Run as it is, this calls the function as Spark's executors would, on batches of pyarrow. Each
process that calls it loads the model once; on a cluster, use a folder or a hub id that all machines
reach.
"""

import argparse
from typing import Any

import pyarrow as pa

import phiscope
from phiscope.extraction.cluster.arrow_function import ArrowFunction

TEXTS = {
    "add": "def add(a, b):\n    return a + b\n",
    "greet": "def greet(name):\n    return f'Hello, {name}!'\n",
    "nothing": "",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Hidden states of Arrow record batches.")
    parser.add_argument("--model", default="tiny", help="a name, a folder or a hub id")
    parser.add_argument("--points", default="resid_post.0")
    options = parser.parse_args()
    function = phiscope.make_arrow_function(
        options.model, points=options.points, pool="mean", num_threads=1, for_spark=True
    )
    print(f"phiscope {phiscope.__version__}; the columns, as Spark calls them:\n{function.ddl}\n")
    batch = pa.RecordBatch.from_pydict({"id": list(TEXTS), "text": list(TEXTS.values())})
    for result in function(iter([batch])):
        for row in result.to_pylist():
            states = row[f"{options.points}.mean"]
            shown = row["error"] or ", ".join(f"{value:.3f}" for value in states[:4]) + ", ..."
            print(f"{row['id']:8} {shown}")


def extract_with_spark(frame: Any, function: ArrowFunction) -> Any:
    """A Spark data frame with the columns `id` and `text`; made with `for_spark=True`."""
    return frame.mapInArrow(function, schema=function.ddl)


def extract_with_daft(frame: Any, function: ArrowFunction) -> Any:
    """A Daft data frame with the columns `id` and `text`; pooled, so that rows stay rows."""
    import daft

    @daft.func.batch(return_dtype=daft.DataType.from_arrow_type(pa.struct(list(function.schema))))
    def run(id: daft.Series, text: daft.Series) -> daft.Series:
        batch = pa.RecordBatch.from_arrays([id.to_arrow(), text.to_arrow()], ["id", "text"])
        none = pa.array([], pa.struct(list(function.schema)))
        results = [result.to_struct_array() for result in function([batch])]
        return daft.Series.from_arrow(pa.concat_arrays([none, *results]))

    states = frame.select(run(daft.col("id"), daft.col("text")).alias("states"))
    return states.select(daft.col("states").unnest())


if __name__ == "__main__":
    main()
