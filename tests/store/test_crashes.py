"""Fault 53: a job killed anywhere, its unsynced bytes lost, is resumed to the very same folder."""

import itertools

import pytest
from store.faulty_disk import Killed, MortalDisk, UnsyncedDisk
from store.small_job import (
    NUM_SHARDS,
    open_writer,
    read_files,
    write_part,
    write_shard,
    write_store,
)

from phiscope.store import merge_stores

LOSSES = ("nothing", "contents", "names and contents", "oldest name")


class Crashes:
    """Runs jobs in folders of their own, kills them, and takes away what was not synced."""

    def __init__(self, place):
        self.place = place
        self.numbers = itertools.count()

    def disk(self, fatal=None, **options):
        return MortalDisk(self.place / f"attic-{next(self.numbers)}", fatal, **options)

    def folder(self):
        return self.place / f"store-{next(self.numbers)}"

    def kill(self, job, folder, fatal, loss, *, torn=False):
        disk = self.disk(fatal, torn=torn)
        with pytest.raises(Killed):
            job(folder, disk)
        if "name" in loss:
            disk.lose_names(oldest="oldest" in loss)
        if "contents" in loss:
            disk.lose_contents(folder)

    def sweep(self, job, expected, loss):
        """Kill a job at each thing it does, after it and halfway, and resume it each time."""
        whole = self.disk()
        job(self.folder(), whole)
        for fatal, verb in enumerate(whole.verbs):
            for torn in (False, True) if verb == "write" else (False,):
                folder = self.folder()
                self.kill(job, folder, fatal, loss, torn=torn)
                job(folder, self.disk())
                assert read_files(folder) == expected, (fatal, verb, torn)
        return whole.verbs


@pytest.fixture
def crashes(tmp_path):
    return Crashes(tmp_path)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The files of a job that was left alone."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    write_store(folder, UnsyncedDisk())
    return read_files(folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The shards in two parts."""
    place = tmp_path_factory.mktemp("parts")
    disk = UnsyncedDisk()
    return [write_part(place / f"part-{i}", range(i, NUM_SHARDS, 2), disk) for i in range(2)]


@pytest.mark.parametrize("loss", LOSSES)
def test_fault_53_job_killed_anywhere_resumes_to_the_same_bytes(crashes, expected, loss):
    verbs = crashes.sweep(write_store, expected, loss)
    assert {"create", "write", "sync", "rename to", "sync the folder", "remove"} <= set(verbs)


def test_fault_53_job_killed_again_while_it_resumes(crashes, expected):
    whole = crashes.disk()
    write_store(crashes.folder(), whole)
    for first, second in itertools.product(range(3, len(whole.verbs), 7), (1, 4, 9)):
        folder = crashes.folder()
        crashes.kill(write_store, folder, first, "names and contents")
        try:
            crashes.kill(write_store, folder, second, "names and contents", torn=True)
        except pytest.fail.Exception:
            assert first > len(whole.verbs) - 15  # so little was left to do that nothing was fatal
        write_store(folder, crashes.disk())
        assert read_files(folder) == expected, (first, second)


def test_power_cut_after_a_shard_is_recorded_does_not_lose_it(crashes):
    folder, disk = crashes.folder(), crashes.disk()
    with open_writer(folder, disk) as writer:
        write_shard(writer, 0)
        write_shard(writer, 2)
    disk.lose_names()
    disk.lose_contents(folder)
    with open_writer(folder) as writer:
        assert set(writer.done) == {0, 2}


def test_power_cut_after_the_end_leaves_a_finished_store(crashes, expected):
    folder, disk = crashes.folder(), crashes.disk()
    write_store(folder, disk)
    disk.lose_names()
    disk.lose_contents(folder)
    assert read_files(folder) == expected


@pytest.mark.parametrize("loss", ["contents", "names and contents"])
def test_fault_53_merge_killed_anywhere_goes_on_to_the_same_bytes(crashes, parts, expected, loss):
    before = [read_files(part) for part in parts]
    crashes.sweep(lambda out, disk: merge_stores(parts, out, disk=disk), expected, loss)
    assert [read_files(part) for part in parts] == before


@pytest.mark.parametrize("links", [True, False], ids=["linked", "copied"])
def test_power_cut_after_a_merge_leaves_what_parts_had_not_synced(crashes, parts, expected, links):
    out, disk = crashes.folder(), crashes.disk(links=links)
    for part in parts:
        disk.forget_syncs(part)
    merge_stores(parts, out, disk=disk)
    disk.lose_names()
    disk.lose_contents(out)
    assert read_files(out) == expected
