"""A verification finds nothing in a sound store, whatever it holds, and every fault in another."""

import dataclasses
import json
import random

import pytest
import torch
from oracle import make_model
from plain_extraction import CONFIG, make_phi
from store.faulty_disk import Killed, MortalDisk, UnsyncedDisk

from phiscope.activations.edits import Add, Knockout
from phiscope.activations.points import Point
from phiscope.api import Phi
from phiscope.errors import StoreError
from phiscope.extraction.comparison import Deviation
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.inputs import Row, open_source
from phiscope.extraction.job import Job, run_job
from phiscope.extraction.options import make_options
from phiscope.extraction.verification import (
    RowSample,
    Verification,
    read_verification,
    verify_rows,
    verify_store,
)
from phiscope.runtime import MODES
from phiscope.store import open_store

EVERY_POOL = ("mean", "last", "weighted_mean", "max", "first")
STATES = "embeddings, resid_post.[0,2], q_rot.1, z.1, mlp_act.2, final_norm"
MAPS = "attn_entropy.1, attn_received.[0,2]"
STEM = "a stem of tokens that many begin with, "
TEXTS = (
    "the cat",
    STEM + "the end",
    "",
    STEM + "another",
    "é🙂 naïve",
    "a long text, " * 12,
    "x",
    [7, 8, 9],
)
"""One is empty and one is longer than the context of 64."""


@pytest.fixture(scope="module")
def phi():
    return make_phi()


def make_job(phi, out, texts=TEXTS, *, edits=(), verify=0, **settings):
    known = {"points": "resid_post.[:]", "pool": "mean", "shard_size": 3} | settings
    extractor = Extractor(phi.model, phi.tokenizer, make_options(**known), edits)
    return Job(extractor=extractor, source=open_source(list(texts)), out=out, verify=verify)


def write_store(phi, out, texts=TEXTS, **settings):
    job = make_job(phi, out, texts, **settings)
    return job, run_job(job, disk=UnsyncedDisk())


def verify(job, n=100):
    return verify_store(job.extractor, open_store(job.out), job.source.rows(), n)


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("pool", "dtype"),
    [(None, "float32"), (None, "float16"), (EVERY_POOL, "float32"), (EVERY_POOL, "bfloat16")],
    ids=["tokens", "tokens float16", "texts", "texts bfloat16"],
)
def test_a_sound_store_is_found_sound_at_every_point(phi, tmp_path, pool, dtype):
    settings = {"points": f"{STATES}, {MAPS}", "pool": pool, "dtype": dtype}
    job, report = write_store(phi, tmp_path / "s", verify=100, overflow="window", **settings)
    assert report.verification.num_rows == len(TEXTS) - 1  # all but the bad row
    assert set(report.verification.columns) == set(open_store(job.out).columns)
    assert report.verification.is_sound
    step = torch.finfo(getattr(torch, dtype)).eps
    largest = max(column.max_rel for column in report.verification.columns.values())
    assert 0 < largest < step / 2 + 1e-6
    assert verify(job) == report.verification


@pytest.mark.parametrize("kept", [{"top_k": 4}, {"token_ids": [3, 300]}], ids=str)
@pytest.mark.parametrize("pool", [None, ("last", "first")], ids=["tokens", "texts"])
def test_logits_are_compared_with_those_of_the_reference(phi, tmp_path, pool, kept):
    settings = {"points": "logits, final_norm", "pool": pool, "overflow": "window", **kept}
    _, report = write_store(phi, tmp_path / "s", verify=100, **settings)
    errors = {name: each.max_rel for name, each in report.verification.columns.items()}
    assert all(error < 1e-6 for name, error in errors.items() if "logits" in name)
    assert len(errors) == (len(kept.get("token_ids", "abc")) + 1) * (2 if pool else 1)


@pytest.mark.parametrize("tokens", ["first:2", "last:2", "token:64", "text:the"])
def test_chosen_tokens_are_compared(phi, tmp_path, tokens):
    settings = {"points": f"resid_post.1, {MAPS}", "tokens": tokens, "overflow": "window"}
    for number, pool in enumerate((None, "weighted_mean")):
        _, report = write_store(phi, tmp_path / str(number), verify=9, pool=pool, **settings)
        assert report.verification.num_rows >= 2
        assert report.verification.is_sound


def test_edits_are_part_of_the_reference(phi, tmp_path):
    edits = (Add(Point("resid_post", 0), torch.ones(32)), Knockout(Point("attn_probs", 1), (0,)))
    _, report = write_store(phi, tmp_path / "s", edits=edits, verify=9, overflow="truncate")
    assert report.verification.is_sound
    steered = open_store(tmp_path / "s")["resid_post.0.mean"].float32()
    write_store(phi, tmp_path / "t", overflow="truncate")
    assert abs(steered - open_store(tmp_path / "t")["resid_post.0.mean"].float32()).max() > 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_errors_are_those_of_the_arithmetic(tmp_path, dtype):
    phi = make_phi()
    phi.model.to(dtype)
    points = "z.1, resid_post.2, attn_entropy.2, logits"
    settings = {"points": points, "pool": None, "dtype": "float32", "top_k": 3}
    _, report = write_store(phi, tmp_path / "s", verify=9, overflow="window", **settings)
    assert report.verification.is_sound
    largest = max(column.max_rel for column in report.verification.columns.values())
    assert torch.finfo(dtype).eps / 8 < largest < 16 * torch.finfo(dtype).eps


def test_clamped_values_are_no_errors(tmp_path):
    phi = make_phi()
    with torch.no_grad():
        phi.model.model.embed_tokens.weight.mul_(1e6)
    _, report = write_store(phi, tmp_path / "s", verify=9, overflow="window")
    assert report.num_clamped > 0
    assert report.verification.is_sound


def test_another_models_states_are_not_sound(phi, tmp_path):
    job, _ = write_store(phi, tmp_path / "s", points="resid_post.[:]")
    model = make_model(CONFIG)
    with torch.no_grad():
        model.model.layers[1].mlp.fc2.bias[5] += 0.5
    other = Extractor(model, phi.tokenizer, job.extractor.options)
    rows = [row for row in job.source.rows() if row.fault is None][:4]
    found = verify_rows(other, open_store(job.out), rows)
    sound = {name: column.is_sound for name, column in found.columns.items()}
    assert list(sound.values()) == [True, False, False]
    assert not found.is_sound
    assert "NOT SOUND" in str(found)
    with pytest.raises(StoreError, match=r"job\.model\.weights"):
        verify_store(other, open_store(job.out), job.source.rows(), 4)


def test_numbers_that_are_none_are_infinitely_wrong(phi, tmp_path):
    job, _ = write_store(phi, tmp_path / "s")
    model = make_model(CONFIG)
    with torch.no_grad():
        model.model.layers[1].mlp.fc2.bias[5] = torch.nan
    other = Extractor(model, phi.tokenizer, job.extractor.options)
    found = verify_rows(other, open_store(job.out), list(job.source.rows(0, 1)))
    assert found.columns["resid_post.1.mean"].max_abs == float("inf")
    assert not found.is_sound
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert read_verification({"verification": value}) == found


def test_a_damaged_file_is_named(phi, tmp_path):
    job, _ = write_store(phi, tmp_path / "s")
    path = sorted(job.out.glob("*.arrow"))[1]
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    found = verify(job)
    assert not found.is_sound
    assert path.name in str(found)


@pytest.mark.parametrize("pool", [None, "mean"], ids=["tokens", "texts"])
def test_a_row_of_another_input_is_named(phi, tmp_path, pool):
    job, _ = write_store(phi, tmp_path / "s", pool=pool)
    store = open_store(job.out)
    with pytest.raises(StoreError, match=r"row 3 \('3'\) of the input is not what"):
        verify_rows(job.extractor, store, [Row(index=3, id="3", text=STEM + "something else")])
    texts = [*TEXTS[:3], "another", *TEXTS[4:]]
    with pytest.raises(StoreError, match="rows 3 to 5 of the input"):
        verify_store(job.extractor, store, open_source(texts).rows(), 1)
    with pytest.raises(StoreError, match="more rows"):
        verify_store(job.extractor, store, open_source([*TEXTS, "x"]).rows(), 1)


def test_texts_of_one_id_are_told_apart_by_their_place_or_tokens(phi, tmp_path):
    rows = [{"id": "same", "text": text} for text in ("the cat", "a cat", "the cats", "a cat")]
    for number, pool in enumerate((None, "mean")):
        _, report = write_store(phi, tmp_path / str(number), rows, pool=pool, verify=4)
        assert report.verification.num_rows == 4
        assert report.verification.is_sound


def test_the_machine_and_its_batches_may_be_others(phi, tmp_path):
    job, report = write_store(phi, tmp_path / "s", verify=9)
    other = make_job(phi, job.out, token_budget=64, share_prefixes=False)
    assert verify(other) == report.verification
    with pytest.raises(StoreError, match=r"job\.reading\.points"):
        verify(make_job(phi, job.out, points="resid_post.1"))


def test_a_sample_is_a_matter_of_row_numbers_alone():
    rows = [Row(index=index, id=str(index), text="x") for index in range(200)]
    mixed = random.Random(0).sample(rows, k=200)
    samples = {size: RowSample(size) for size in (0, 1, 8, 300)}
    for size, sample in samples.items():
        sample.offer_all(mixed)
        again = RowSample(size)
        again.offer_all(rows)
        assert sample.rows == again.rows
        assert len(sample.rows) == min(size, 200)
    assert samples[300].rows == rows
    assert set(map(id, samples[1].rows)) < set(map(id, samples[8].rows))
    least, most = samples[8].rows[0].index, samples[8].rows[-1].index
    assert least < 100 < most


@pytest.mark.parametrize("fatal", [-1, -2, -6])
def test_a_job_killed_before_its_verification_is_verified_when_resumed(phi, tmp_path, fatal):
    whole = MortalDisk(tmp_path / "attic")
    run_job(make_job(phi, tmp_path / "whole", verify=4), disk=whole)
    job = make_job(phi, tmp_path / "s", verify=4)
    with pytest.raises(Killed):
        run_job(job, disk=MortalDisk(tmp_path / "attic", whole.operations + fatal))
    report = run_job(job, disk=UnsyncedDisk())
    assert report.was_finished
    assert report.verification.num_rows == 4
    assert read_files(job.out) == read_files(tmp_path / "whole")


def test_a_finished_store_is_verified_when_asked_and_keeps_the_larger_verification(phi, tmp_path):
    job, report = write_store(phi, tmp_path / "s")
    assert report.verification is None
    verified = [run_job(dataclasses.replace(job, verify=n)).verification for n in (2, 5, 3, 0)]
    assert [found.num_rows for found in verified] == [2, 5, 5, 5]
    assert read_verification(open_store(job.out).manifest) == verified[-1]


def test_a_verification_reads_an_input_that_passes_once(phi, tmp_path):
    whole, _ = write_store(phi, tmp_path / "whole", verify=3)
    job = dataclasses.replace(
        make_job(phi, tmp_path / "s", verify=3), source=open_source(iter(TEXTS))
    )
    run_job(job, disk=UnsyncedDisk())
    assert read_files(job.out) == read_files(whole.out)


def test_nothing_sound_is_nothing_to_verify(phi, tmp_path):
    _, report = write_store(phi, tmp_path / "s", ["", ""], verify=3)
    assert report.verification.num_rows == 0
    assert "no rows to verify" in str(report)


def test_extract_verifies_and_says_so(tmp_path):
    phi = Phi(make_model(CONFIG).bfloat16(), make_phi().tokenizer, MODES["bf16-cpu"])
    report = phi.extract(list(TEXTS), tmp_path / "s", points="resid_post.2", pool="mean", verify=2)
    assert "2 rows verified: relative error at most" in str(report)
    value = json.loads((tmp_path / "s/manifest.json").read_text())["verification"]
    assert value == report.verification.to_json()
    assert set(value["columns"]["resid_post.2.mean"]) == {"max_abs", "max_rel", "tolerance"}


def test_the_number_of_rows_and_parts_are_checked(phi, tmp_path):
    with pytest.raises(ValueError, match="negative"):
        make_job(phi, tmp_path, verify=-1)
    with pytest.raises(ValueError, match="merge the parts"):
        dataclasses.replace(make_job(phi, tmp_path, verify=1), part=(0, 2))


def test_the_worst_column_is_the_one_that_is_told():
    columns = {
        "a": Deviation(max_abs=2.0, max_rel=0.1, tolerance=1.0),
        "b": Deviation(max_abs=1.0, max_rel=0.01, tolerance=0.001),
    }
    found = Verification(num_rows=7, columns=columns)
    assert not found.is_sound
    assert "at most 1.0e-02 (b; rounding explains 1.0e-03)" in str(found)
