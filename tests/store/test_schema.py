import pyarrow as pa
import pytest

from phiscope.errors import StoreError
from phiscope.store import Column, Schema
from phiscope.store.schema import BATCH_BYTES, DTYPES, read_schema

COLUMN = Column(name="resid_post.1", dtype="float16", shape=(8,))


@pytest.mark.parametrize("level", ["texts", "tokens"])
def test_schema_comes_back_from_its_json(level):
    shapes = {"float16": (5,), "float32": (), "bfloat16": (2, 3), "int32": (1,)}
    columns = tuple(Column(name=name, dtype=name, shape=shapes[name]) for name in DTYPES)
    schema = Schema(level=level, columns=columns)
    assert read_schema(schema.to_json()) == schema


def test_arrow_fields_tell_dtype_and_shape():
    column = Column(name="z.3", dtype="bfloat16", shape=(32, 80))
    field = column.arrow()
    assert field.type == pa.list_(pa.uint16(), 2560)
    assert field.metadata == {b"dtype": b"bfloat16", b"shape": b"[32, 80]"}


@pytest.mark.parametrize(
    ("level", "names"),
    [("texts", ["id", "num_tokens", "text_sha256"]), ("tokens", ["id", "pos", "token_id"])],
)
def test_leading_columns_are_those_of_the_level(level, names):
    schema = Schema(level=level, columns=(COLUMN,))
    assert schema.arrow().names == [*names, "resid_post.1"]


@pytest.mark.parametrize("width", [1, 2560, 10**9])
def test_batch_holds_as_many_rows_as_fit_and_at_least_one(width):
    column = Column(name="a", dtype="float32", shape=(width,))
    schema = Schema(level="tokens", columns=(column,))
    size = schema.batch_rows * schema.row_bytes
    assert size <= BATCH_BYTES < size + schema.row_bytes or schema.batch_rows == 1


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"dtype": "float64"}, "no column dtype 'float64'; choose from float16, float32"),
        ({"shape": (0,)}, "sizes from 1"),
        ({"name": ""}, "needs a name"),
    ],
)
def test_column_that_cannot_be_is_refused(changes, fault):
    with pytest.raises(ValueError, match=fault):
        Column(**{"name": "a", "dtype": "float16", "shape": (2,)} | changes)


@pytest.mark.parametrize("name", ["id", "token_id", "resid_post.1"])
def test_column_names_are_not_used_twice(name):
    other = Column(name=name, dtype="float16", shape=(8,))
    with pytest.raises(ValueError, match="names of their own"):
        Schema(level="tokens", columns=(COLUMN, other))


@pytest.mark.parametrize("value", [{}, {"level": "texts", "columns": [{"name": "a"}]}])
def test_json_that_is_no_schema_is_refused(value):
    with pytest.raises(StoreError, match="no columns of a store"):
        read_schema(value)
