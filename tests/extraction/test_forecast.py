"""What is forecast of a job is what the job then comes to."""

import resource

import pytest
from plain_extraction import make_phi
from store.faulty_disk import UnsyncedDisk

from phiscope.errors import InputError
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.forecast import forecast
from phiscope.extraction.inputs import open_source
from phiscope.extraction.job import Job, run_job
from phiscope.extraction.options import make_options
from phiscope.extraction.progress import Progress

STEM = "a stem of tokens that many begin with, "
TEXTS = [
    {
        "id": f"row number {number} é",
        "text": f"{STEM * (number % 3)}text {number} " * (1 + number % 4),
    }
    for number in range(24)
] + [{"id": "bad", "text": ""}, {"id": "long", "text": "long and longer " * 40}]


@pytest.fixture(scope="module")
def phi():
    return make_phi(max_position_embeddings=512)


def make_job(phi, out, texts=TEXTS, *, part=None, **settings):
    known = {"points": "resid_post.[:]", "pool": "mean", "shard_size": 8, "token_budget": 300}
    extractor = Extractor(phi.model, phi.tokenizer, make_options(**known | settings))
    return Job(extractor=extractor, source=open_source(texts), out=out, part=part)


class Counting(Progress):
    """Counts the forwards of a job."""

    num_batches = 0

    def advance(self, pieces, tokens):
        self.num_batches += 1


@pytest.mark.parametrize("tokens", ["all", "last:1"])
@pytest.mark.parametrize("pool", [None, ("mean", "last")], ids=["tokens", "texts"])
def test_rows_tokens_batches_and_shards_are_those_of_the_job(phi, tmp_path, pool, tokens):
    job = make_job(phi, tmp_path / "s", pool=pool, tokens=tokens)
    found = forecast(job, seconds=0)
    progress = Counting(job.extractor)
    report = run_job(job, disk=UnsyncedDisk(), progress=progress)
    assert found.num_input_rows == report.num_input_rows == len(TEXTS)
    assert found.num_bad_rows == report.num_bad_rows == 2
    assert found.num_tokens == report.num_tokens
    assert found.num_batches == progress.num_batches
    assert found.num_shards == len(list(job.out.glob("*.arrow"))) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"pool": None},
        {"pool": ("mean", "last", "max"), "shard_size": 16},
        {"pool": None, "points": "mlp_act.[:]", "dtype": "float32", "tokens": "last:3"},
        {"pool": None, "points": "logits", "top_k": 3, "tokens": "first:20"},
    ],
    ids=["tokens", "texts", "float32", "logits"],
)
def test_bytes_on_the_disk_are_those_of_the_store_within_2_percent(phi, tmp_path, settings):
    job = make_job(phi, tmp_path / "s", overflow="window", **settings)
    found = forecast(job, seconds=0)
    run_job(job, disk=UnsyncedDisk())
    size = sum(path.stat().st_size for path in job.out.iterdir())
    assert found.disk_bytes == pytest.approx(size, rel=0.02)


def test_nothing_is_written(phi, tmp_path):
    forecast(make_job(phi, tmp_path / "s"), seconds=0)
    assert not list(tmp_path.iterdir())


def test_the_parts_of_a_job_add_up_to_it(phi, tmp_path):
    whole = forecast(make_job(phi, tmp_path / "s"), seconds=0)
    parts = [forecast(make_job(phi, tmp_path / "s", part=(i, 4)), seconds=0) for i in range(4)]
    for name in ("num_input_rows", "num_bad_rows", "num_tokens", "num_batches", "num_shards"):
        assert getattr(whole, name) == sum(getattr(part, name) for part in parts)


def test_a_longer_trial_ends_in_time_and_gives_a_speed(phi, tmp_path):
    found = forecast(make_job(phi, tmp_path / "s"), seconds=0.05)
    assert 0 < found.seconds < 60
    assert found.tokens_per_second == pytest.approx(found.num_tokens / found.seconds)
    assert f"{found.num_tokens:,} tokens" in str(found)


def test_memory_is_at_least_what_the_process_has_held(phi, tmp_path):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert forecast(make_job(phi, tmp_path / "s"), seconds=0).peak_memory_bytes >= peak


def test_keys_of_prefixes_count_where_there_are_prefixes(phi, tmp_path, monkeypatch):
    told = []

    def note(self, pieces, num_prefix_tokens):
        told.append((any(piece.prefix is not None for piece in pieces), num_prefix_tokens))
        return 0

    monkeypatch.setattr("phiscope.extraction.costs.Costs.estimate_memory", note)
    stem = "what many texts of this corpus begin with, " * 3
    texts = ["one of its own", *(f"{stem}{end}" for end in ("this", "that", "more"))]
    forecast(make_job(phi, tmp_path / "s", texts), seconds=0)
    length = len(phi.tokenizer.encode(stem))
    assert next(tokens for goes_on, tokens in told if not goes_on) == 0
    assert {tokens for goes_on, tokens in told if goes_on} <= {length - 1, length}
    assert any(goes_on for goes_on, _ in told)


def test_an_input_that_passes_once_is_refused(phi, tmp_path):
    job = make_job(phi, tmp_path / "s", iter(["one", "two"]))
    with pytest.raises(InputError, match="only once"):
        forecast(job)
    assert len(list(job.source.rows())) == 2


@pytest.mark.parametrize("texts", [[], ["", ""]], ids=["no rows", "bad rows"])
def test_nothing_to_run_takes_no_batches(phi, tmp_path, texts):
    found = forecast(make_job(phi, tmp_path / "s", texts))
    assert (found.num_input_rows, found.num_bad_rows) == (len(texts), len(texts))
    assert (found.num_tokens, found.num_batches, found.tokens_per_second) == (0, 0, 0)
    empty = make_job(phi, tmp_path / "s", texts)
    run_job(empty, disk=UnsyncedDisk())
    size = sum(path.stat().st_size for path in empty.out.iterdir())
    assert found.disk_bytes == pytest.approx(size, abs=1500)
