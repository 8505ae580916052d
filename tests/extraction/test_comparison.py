"""A number that is another on the disk is found, in whichever column and row, and by how much."""

import numpy as np
import pytest
from plain_extraction import make_phi
from store.faulty_disk import UnsyncedDisk

from phiscope.extraction.comparison import find_tolerance
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.inputs import open_source
from phiscope.extraction.job import Job, run_job
from phiscope.extraction.options import make_options
from phiscope.extraction.verification import verify_rows
from phiscope.store import open_store

TEXTS = ["the cat", "", "another cat and another", "a dog", "a long text, " * 9]


@pytest.fixture(scope="module")
def phi():
    return make_phi()


def write_store(phi, out, **settings):
    options = make_options(shard_size=2, overflow="window", **settings)
    extractor = Extractor(phi.model, phi.tokenizer, options)
    job = Job(extractor=extractor, source=open_source(TEXTS), out=out)
    run_job(job, disk=UnsyncedDisk())
    return job


def find_errors(job):
    rows = [row for row in job.source.rows() if row.fault is None]
    return verify_rows(job.extractor, open_store(job.out), rows).columns


def change(job, column, change):
    """Change the last number of a column on the disk."""
    span = open_store(job.out).locate(column)[-1]
    values = np.memmap(span.path, span.dtype, "r+", span.offset, span.shape)
    values[-1, -1] = change(values[-1, -1])
    values.flush()


@pytest.mark.parametrize("column", ["resid_post.1", "z.0", "attn_entropy.2", "logits.top_values"])
@pytest.mark.parametrize("pool", [None, "last"], ids=["tokens", "texts"])
def test_a_changed_number_is_found(phi, tmp_path, column, pool):
    points = "resid_post.1, z.0, attn_entropy.2, logits"
    job = write_store(phi, tmp_path / "s", points=points, pool=pool, dtype="float32", top_k=3)
    if pool is not None:
        column = column.replace("logits", "logits.last") if "logits" in column else f"{column}.last"
    before = find_errors(job)
    assert all(deviation.is_sound for deviation in before.values())
    change(job, column, lambda number: number + 2)
    after = find_errors(job)
    assert after[column].max_abs == pytest.approx(2, abs=1e-4)
    assert not after.pop(column).is_sound
    assert after == {name: before[name] for name in after}


def test_ids_that_are_not_the_likeliest_are_found(phi, tmp_path):
    job = write_store(phi, tmp_path / "s", points="logits", top_k=2)
    assert find_errors(job)["logits.top_ids"].max_abs == 0
    change(job, "logits.top_ids", lambda token_id: (token_id + 1) % 300)
    errors = find_errors(job)
    assert not errors["logits.top_ids"].is_sound
    assert not errors["logits.top_values"].is_sound
    assert errors["logits.logsumexp"].is_sound


def test_a_number_that_is_none_is_infinitely_wrong(phi, tmp_path):
    job = write_store(phi, tmp_path / "s", points="resid_post.1", pool="mean")
    change(job, "resid_post.1.mean", lambda _: np.nan)
    (found,) = find_errors(job).values()
    assert (found.max_abs, found.max_rel, found.is_sound) == (np.inf, np.inf, False)


def test_the_error_is_relative_to_the_row_that_has_it(phi, tmp_path):
    job = write_store(phi, tmp_path / "s", points="resid_post.1", pool="mean", dtype="float32")
    row = np.array(open_store(job.out)["resid_post.1.mean"][-1])
    change(job, "resid_post.1.mean", lambda number: number + 1)
    (found,) = find_errors(job).values()
    assert found.max_rel == pytest.approx(1 / np.linalg.norm(row), rel=1e-3)


def test_tolerances_widen_with_the_kept_dtype_the_arithmetic_and_maps(phi):
    def tolerance(arithmetic="float32", **settings):
        known = {"points": "resid_post.1", "dtype": "float32"} | settings
        extractor = Extractor(phi.model, phi.tokenizer, make_options(**known))
        return find_tolerance(extractor.readings[0], arithmetic)

    assert tolerance(dtype="float16") == pytest.approx(2**-10 + 1e-4)
    assert tolerance() < tolerance(dtype="float16") < tolerance(dtype="bfloat16")
    arithmetics = ("float64", "float32", "float16", "bfloat16")
    bounds = [tolerance(arithmetic) for arithmetic in arithmetics]
    assert bounds == sorted(bounds)
    assert tolerance(points="attn_entropy.1") > tolerance()
    assert tolerance(points="logits", top_k=1) == 1e-4  # of ids, which nothing rounds
