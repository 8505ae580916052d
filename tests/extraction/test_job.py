"""A job gives the same folder however often it was interrupted, and refuses any other job's."""

import dataclasses
import json
import signal
import threading

import pytest
import torch
from plain_extraction import make_phi
from store.faulty_disk import FailingDisk, Killed, MortalDisk, UnsyncedDisk

import phiscope
from phiscope.errors import InputError, StoreError
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.inputs import open_source
from phiscope.extraction.interrupts import interruptible
from phiscope.extraction.job import Job, run_job
from phiscope.extraction.options import make_options
from phiscope.extraction.progress import Progress
from phiscope.store import merge_stores, open_store

TEXTS = [f"def function_{number}(x):\n    return x" for number in range(11)] + [""]
"""Four shards of three, of which the last row is bad."""
LEVELS = pytest.mark.parametrize("pool", ["mean", None], ids=["texts", "tokens"])


@pytest.fixture(scope="module")
def nano():
    return phiscope.load("nano", mode="fp32-cpu")


@pytest.fixture(scope="module")
def phi():
    """Random weights, smaller still."""
    return make_phi()


@pytest.fixture(scope="module", params=["unfinished", "finished"])
def folder(request, phi, tmp_path_factory):
    """A store of two shards of four, or of all, for what must leave it as it is."""
    job = make_job(phi, tmp_path_factory.mktemp("stores") / request.param)
    forwards = [2] if request.param == "unfinished" else []
    assert run(job, progress=Interrupting(job.extractor, *forwards)).is_finished == (not forwards)
    return job.out


def make_job(phi, out, texts=TEXTS, *, part=None, verify=0, **settings):
    known = {"points": "resid_post.[1,2]", "pool": "mean", "shard_size": 3}
    extractor = Extractor(phi.model, phi.tokenizer, make_options(**known | settings))
    return Job(extractor=extractor, source=open_source(texts), out=out, part=part, verify=verify)


def run(job, **options):
    return run_job(job, **{"disk": UnsyncedDisk()} | options)


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Interrupting(Progress):
    """Presses Ctrl-C in the midst of some forwards."""

    def __init__(self, extractor, *forwards):
        super().__init__(extractor)
        self.forwards = forwards
        self.count = 0
        self.words = []

    def advance(self, pieces, tokens):
        if self.count in self.forwards:
            signal.raise_signal(signal.SIGINT)
        self.count += 1

    def say(self, words):
        self.words.append(words)


@LEVELS
def test_fault_53_a_job_killed_anywhere_resumes_to_the_same_bytes(nano, tmp_path, pool):
    whole, attic = MortalDisk(tmp_path / "attic"), tmp_path / "attic"
    run(make_job(nano, tmp_path / "whole", pool=pool, verify=2), disk=whole)
    expected = read_files(tmp_path / "whole")
    assert len(expected) == 4 + len(("manifest", "errors", "info", "state"))
    for fatal in range(1, whole.operations, 9):
        job = make_job(nano, tmp_path / f"killed-{fatal}", pool=pool, verify=2)
        disk = MortalDisk(attic, fatal, torn=fatal % 2 == 0)
        with pytest.raises(Killed):
            run(job, disk=disk)
        if fatal % 4 < 2:
            disk.lose_names()
            disk.lose_contents(job.out)
        run(job)
        assert read_files(job.out) == expected, (fatal, whole.verbs[fatal])


@LEVELS
def test_fault_55_first_ctrl_c_finishes_the_shard_and_the_job_goes_on_later(phi, tmp_path, pool):
    whole = make_job(phi, tmp_path / "whole", pool=pool)
    assert run(whole).is_finished
    job = make_job(phi, tmp_path / "s", pool=pool)
    progress = Interrupting(job.extractor, 2)  # the first of the second shard
    report = run(job, progress=progress)
    assert not report.is_finished
    assert report.num_input_rows == 6
    assert ["press Ctrl-C again" in words for words in progress.words] == [True]
    assert run(job).is_finished
    assert read_files(job.out) == read_files(whole.out)


def test_second_ctrl_c_ends_at_once_and_leaves_a_folder_that_goes_on(phi, tmp_path):
    whole = make_job(phi, tmp_path / "whole", token_budget=16)  # two forwards a shard
    run(whole)
    job = make_job(phi, tmp_path / "s", token_budget=16)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(job, progress=Interrupting(job.extractor, 6, 7))
    assert signal.getsignal(signal.SIGINT) is handler
    names = {path.name for path in job.out.iterdir()}
    assert {"journal.jsonl", "shard-00000.arrow"} <= names
    assert not any(name.endswith(".tmp") for name in names)
    assert run(job).is_finished
    assert read_files(job.out) == read_files(whole.out)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("out of memory")], ids=str)
def test_an_exception_of_the_model_leaves_a_folder_that_goes_on(phi, tmp_path, error):
    whole = make_job(phi, tmp_path / "whole")
    run(whole)
    job = make_job(phi, tmp_path / "s")
    calls = iter([None, None, error])

    def fail(*_):
        if (raised := next(calls)) is not None:
            raise raised

    hook = phi.model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        run(job)
    hook.remove()
    assert run(job).num_rows == 11
    assert read_files(job.out) == read_files(whole.out)


def test_fault_54_a_full_disk_is_told_and_the_job_goes_on_when_there_is_room(phi, tmp_path):
    whole = make_job(phi, tmp_path / "whole")
    run(whole)
    job = make_job(phi, tmp_path / "s")
    with pytest.raises(StoreError, match="make room and resume"):
        run(job, disk=FailingDisk(30, 28))
    run(job)
    assert read_files(job.out) == read_files(whole.out)


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"points": "resid_post.[0,2]"}, r"job\.reading\.points\[0\].*resid_post.1.*resid_post.0"),
        ({"pool": "last"}, r"job\.reading\.pool"),
        ({"dtype": "float32"}, r"job\.reading\.dtype: the store has \"float16\".*\"float32\""),
        ({"tokens": "last:3"}, r"job\.reading\.tokens"),
        ({"shard_size": 4}, r"shard_size: the store has 3, this job has 4"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_fault_54_another_reading_is_refused_with_the_difference(phi, folder, settings, difference):
    before = read_files(folder)
    with pytest.raises(StoreError, match=difference):
        run(make_job(phi, folder, **settings))
    assert read_files(folder) == before


def test_fault_54_other_weights_are_refused(folder):
    other = make_phi()
    with torch.no_grad():
        other.model.model.layers[0].mlp.fc1.bias[3] += 1
    with pytest.raises(StoreError, match=r"job\.model\.weights: the store has"):
        run(make_job(other, folder))


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["another", *TEXTS[1:]], "rows 0 to 2 of the input are not those"),
        ([*TEXTS[:3], TEXTS[4], TEXTS[3], *TEXTS[5:]], "rows 3 to 5"),
        (TEXTS[:4], "rows 3 to 5"),
        (TEXTS[:3], "fewer rows"),
        ([], "fewer rows"),
    ],
    ids=["changed", "exchanged", "cut within a shard", "cut between shards", "empty"],
)
def test_fault_54_another_input_is_refused(phi, folder, texts, told):
    before = read_files(folder)
    with pytest.raises(StoreError, match=told):
        run(make_job(phi, folder, texts))
    assert read_files(folder) == before


@pytest.mark.parametrize("count", [12, 11, 0])
def test_an_input_that_has_grown_is_refused(phi, tmp_path, count):
    job = make_job(phi, tmp_path / "s", TEXTS[:count])
    run(job)
    before = read_files(job.out)
    with pytest.raises(StoreError, match="more rows" if count != 11 else "rows 9 to 10"):
        run(make_job(phi, job.out, [*TEXTS[:count], "one", "more"]))
    assert read_files(job.out) == before


def test_rows_behind_those_that_are_done_may_change(phi, tmp_path):
    job = make_job(phi, tmp_path / "s")
    run(job, progress=Interrupting(job.extractor, 0))
    report = run(make_job(phi, job.out, [*TEXTS[:5], "another"]))
    assert (report.num_input_rows, report.num_rows) == (6, 6)


@LEVELS
def test_a_finished_store_is_left_as_it_is_and_the_report_says_so(phi, tmp_path, pool):
    job = make_job(phi, tmp_path / "s", pool=pool)
    first = run(job)
    before = {path: path.stat().st_mtime_ns for path in (job.out, *job.out.iterdir())}
    again = run(job)
    assert {path: path.stat().st_mtime_ns for path in (job.out, *job.out.iterdir())} == before
    rates = ("seconds", "tokens_per_second", "was_finished")
    same = {name: getattr(first, name) for name in rates}
    assert dataclasses.replace(again, **same) == first
    assert (first.was_finished, again.was_finished) == (False, True)
    assert (again.num_bad_rows, again.num_rows) == (1, first.num_rows)
    assert "finished before" in str(again)
    assert "finished before" not in str(first)


def test_no_rows_give_a_store_of_none_and_again(phi, tmp_path):
    job = make_job(phi, tmp_path / "s", [])
    assert run(job).is_finished
    assert run(job).was_finished
    assert len(open_store(job.out)) == 0


@LEVELS
def test_nothing_but_bad_rows_gives_a_store_without_rows(phi, tmp_path, pool):
    job = make_job(phi, tmp_path / "s", ["", [10**6], "too long " * 99, ""], pool=pool)
    report = run(job)
    assert (report.is_finished, report.num_rows, report.num_bad_rows) == (True, 0, 4)
    assert [entry["index"] for entry in open_store(job.out).errors] == [0, 1, 2, 3]


def test_a_job_that_is_not_to_be_resumed_takes_an_empty_folder_only(phi, tmp_path):
    job = make_job(phi, tmp_path / "s")
    assert run(job, resume=False).is_finished
    with pytest.raises(StoreError, match="not empty"):
        run(job, resume=False)


@LEVELS
@pytest.mark.parametrize("shape", ["texts", "few", "none"])
def test_parts_are_merged_to_the_store_of_one_job(phi, tmp_path, shape, pool):
    texts = {"texts": TEXTS, "few": TEXTS[:2], "none": []}[shape]
    whole = make_job(phi, tmp_path / "whole", texts, pool=pool)
    run(whole)
    parts = [make_job(phi, tmp_path / f"{i}", texts, pool=pool, part=(i, 3)) for i in range(3)]
    reports = [run(part) for part in parts]
    assert not any(report.is_finished for report in reports)
    before = [read_files(part.out) for part in parts]
    assert sum(report.num_rows for report in reports) == len(open_store(whole.out))
    for part in parts:
        run(part)  # done already
    merge_stores([part.out for part in parts], tmp_path / "merged", disk=UnsyncedDisk())
    assert read_files(tmp_path / "merged") == read_files(whole.out)
    assert [read_files(part.out) for part in parts] == before


@pytest.mark.parametrize(
    ("count", "told"), [(9, "fewer rows"), (11, "rows 9 to 10"), (15, "more rows")]
)
def test_a_part_that_is_done_refuses_an_input_of_other_length(phi, tmp_path, count, told):
    texts = [*TEXTS, "thirteen", "fourteen", "fifteen"]
    job = make_job(phi, tmp_path / "s", TEXTS, part=(1, 2))
    run(job)
    with pytest.raises(StoreError, match=told if count != 11 else "rows 9 to 11"):
        run(make_job(phi, job.out, texts[:count], part=(1, 2)))


def test_a_part_can_be_made_whole(phi, tmp_path):
    whole = make_job(phi, tmp_path / "whole")
    run(whole)
    run(make_job(phi, tmp_path / "s", part=(2, 3)))
    assert run(make_job(phi, tmp_path / "s")).is_finished
    assert read_files(tmp_path / "s") == read_files(whole.out)


def test_parts_that_do_not_exist_are_refused(phi, tmp_path):
    for part in ((2, 2), (-1, 2)):
        with pytest.raises(ValueError, match="parts are 0/2 to 1/2"):
            make_job(phi, tmp_path, part=part)


def test_an_input_that_passes_once_is_resumed_when_it_comes_again(phi, tmp_path):
    whole = make_job(phi, tmp_path / "whole")
    run(whole)
    job = make_job(phi, tmp_path / "s", iter(TEXTS))
    run(job, progress=Interrupting(job.extractor, 1))
    with pytest.raises(InputError, match="can be read once"):
        run(job)
    run(dataclasses.replace(job, source=open_source(iter(TEXTS))))
    assert read_files(job.out) == read_files(whole.out)


def test_an_input_that_breaks_off_leaves_a_folder_that_goes_on(phi, tmp_path):
    def texts():
        yield from TEXTS[:7]
        raise OSError("the network is gone")

    job = make_job(phi, tmp_path / "s", texts())
    with pytest.raises(OSError, match="network"):
        run(job)
    report = run(make_job(phi, job.out, iter(TEXTS)))
    assert (report.is_finished, report.num_rows) == (True, 11)


def test_a_text_with_a_nan_is_a_bad_row_and_its_neighbours_are_not(phi, tmp_path):
    other = make_phi()
    with torch.no_grad():
        other.model.model.embed_tokens.weight[9] = torch.nan
    job = make_job(other, tmp_path / "s", [[1, 2], [3, 9, 4], [5]], verify=3)
    report = run(job)
    assert (report.num_rows, report.num_bad_rows) == (2, 1)
    assert report.verification.num_rows == 2
    (entry,) = open_store(job.out).errors
    assert (entry["index"], "NaN" in entry["error"]) == (1, True)


def test_the_report_adds_up_the_store(phi, tmp_path):
    job = make_job(phi, tmp_path / "s", dtype="float16")
    report, store = run(job), open_store(tmp_path / "s")
    manifest = json.loads((tmp_path / "s/manifest.json").read_text())
    assert (report.num_rows, report.num_tokens) == (len(store), store.num_tokens)
    assert report.num_input_rows == manifest["num_input_rows"] == 12
    assert report.num_bad_rows == manifest["num_errors"] == 1
    assert report.num_bytes == sum(shard["bytes"] for shard in manifest["shards"])
    assert "finished, 11 rows of 12 texts" in str(report)


def test_ctrl_c_is_left_alone_where_it_cannot_be_caught_or_is_ignored():
    before = signal.getsignal(signal.SIGINT)
    handlers = []

    def look():
        with interruptible(print):
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    look()
    signal.signal(signal.SIGINT, before)
    assert handlers == [before, signal.SIG_IGN]


def test_ctrl_c_in_the_midst_of_words_is_heard():
    def say(words):
        raise RuntimeError("reentrant call")

    with interruptible(say) as is_asked:
        signal.raise_signal(signal.SIGINT)
        assert is_asked()


def test_rows_of_a_finished_store_are_not_computed_again(phi, tmp_path):
    job = make_job(phi, tmp_path / "s")
    run(job)
    progress = Interrupting(job.extractor)
    run(job, progress=progress)
    assert progress.count == 0


def test_ctrl_c_during_the_verification_leaves_a_finished_store_to_verify(phi, tmp_path):
    class Impatient(Progress):
        def say(self, words):
            assert "again, each alone" in words
            signal.raise_signal(signal.SIGINT)

    job = make_job(phi, tmp_path / "s", verify=2)
    with pytest.raises(KeyboardInterrupt):
        run(job, progress=Impatient(job.extractor))
    assert open_store(job.out).manifest["verification"] is None
    report = run(job)
    assert (report.was_finished, report.verification.num_rows) == (True, 2)


def test_ctrl_c_while_a_finished_store_is_compared_finds_nothing_out(phi, tmp_path):
    run(make_job(phi, tmp_path / "s"))

    class Impatient(Progress):
        def skip(self, rows):
            signal.raise_signal(signal.SIGINT)

    job = make_job(phi, tmp_path / "s", verify=100)
    with pytest.raises(KeyboardInterrupt):
        run(job, progress=Impatient(job.extractor))
    assert open_store(job.out).manifest["verification"] is None


def test_bad_rows_of_a_finished_store_are_not_verified(phi, tmp_path):
    job = make_job(phi, tmp_path / "s")
    run(job)
    report = run(dataclasses.replace(job, verify=100))
    assert report.verification.num_rows == 11
