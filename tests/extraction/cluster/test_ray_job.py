"""Jobs on Ray. All of its tests are here, because starting Ray takes seconds."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from plain_actors import PlainActor, make_header, make_task
from telling_recipe import TellingRecipe

from phiscope.errors import MissingExtraError, StoreError, UnsupportedError
from phiscope.extraction.cluster.actor import ShardActor
from phiscope.extraction.cluster.crew import Crew
from phiscope.extraction.cluster.ray_job import Cluster, ClusterJob, run_on_ray
from phiscope.extraction.cluster.session import Allotment, allot, open_session
from phiscope.extraction.extractor import Extractor
from phiscope.extraction.inputs import open_source
from phiscope.extraction.job import Job, run_job
from phiscope.extraction.options import make_options
from phiscope.extraction.recipe import Recipe
from phiscope.loading import ModelSpec
from phiscope.store.journal import read_journal

pytest.importorskip("ray")

TEXTS = ["", *(f"def f{i}(x):\n    return x + {i}\n" * (1 + i % 5) for i in range(79))]
SHARD_SIZE = 8
NUM_SHARDS = 10
RECIPE = Recipe(
    model=ModelSpec(name="nano", mode="fp32-cpu", num_threads=1),
    options=make_options(points="resid_post.[0,1]", pool=("mean", "last"), shard_size=SHARD_SIZE),
)
PYTHONPATH = os.pathsep.join([str(Path(__file__).parent), *sys.path])
"""For processes that shall find the package and the tests."""
KILLED_DRIVER = """
import os, signal, sys
from test_ray_job import RECIPE, SHARD_SIZE, TEXTS, make_job
from phiscope.extraction.cluster.ray_job import Cluster, run_on_ray

def texts():
    for number, text in enumerate(TEXTS):
        if number == 5 * SHARD_SIZE:
            os.kill(os.getpid(), signal.SIGKILL)
        yield text

run_on_ray(make_job(sys.argv[1], texts()), Cluster(num_actors=1, address=sys.argv[2]))
"""


def make_job(folder, data, recipe=RECIPE):
    return ClusterJob(recipe=recipe, source=open_source(data), out=Path(folder))


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def ray():
    """A Ray of this session's own."""
    session = open_session(Cluster(num_actors=4), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        ray = session.__enter__()
    yield ray
    session.__exit__(None, None, None)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """What one machine writes."""
    folder = tmp_path_factory.mktemp("one") / "store"
    run_job(Job(extractor=RECIPE.make(), source=open_source(TEXTS), out=folder))
    return read_files(folder)


@pytest.fixture
def make_crew(ray):
    """Crews of actors that make shards of the headers given."""

    def make(*headers, size=None):
        actor = ray.remote(PlainActor).options(num_cpus=0.01)
        left = list(headers)
        return Crew(
            ray,
            lambda: actor.remote(left.pop(0) if left else headers[-1]),
            size or len(headers),
            print,
        )

    return make


def collect_all(crew):
    records = []
    while crew.is_busy:
        records += [record for _, record in crew.collect()]
    return records


def answer_as_a_web_server(server):
    connection, _ = server.accept()
    with connection:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def collect_for_ever(crew):
    while True:
        crew.collect()


def test_folder_is_that_of_one_machine_though_an_actor_is_killed(ray, written, tmp_path):
    pids = tmp_path / "pids"
    pids.mkdir()
    recipe = TellingRecipe(model=RECIPE.model, options=RECIPE.options, folder=pids)

    def texts():
        for number, text in enumerate(TEXTS):
            if number == 5 * SHARD_SIZE:
                os.kill(int(next(pids.iterdir()).name), signal.SIGKILL)
            yield text

    job = make_job(tmp_path / "store", texts(), recipe)
    assert run_on_ray(job, Cluster(num_actors=2)).is_finished
    assert read_files(tmp_path / "store") == written


def test_killed_driver_goes_on_where_it_was(ray, written, tmp_path):
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", KILLED_DRIVER, tmp_path / "store", address]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    killed = subprocess.run(command, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    done = read_journal(tmp_path / "store").records
    assert 0 < len(done) < NUM_SHARDS
    report = run_on_ray(make_job(tmp_path / "store", TEXTS), Cluster(num_actors=1))
    assert report.is_finished
    assert read_files(tmp_path / "store") == written


def test_interrupted_job_keeps_the_shards_at_work(ray, tmp_path):
    def texts():
        for number, text in enumerate(TEXTS):
            if number == 5 * SHARD_SIZE:
                os.kill(os.getpid(), signal.SIGINT)
            yield text

    report = run_on_ray(make_job(tmp_path / "store", texts()), Cluster(num_actors=1))
    assert not report.is_finished
    assert sorted(read_journal(tmp_path / "store").records) == [0, 1, 2, 3, 4]
    assert not list((tmp_path / "store").glob("*.tmp"))


def test_what_a_dead_actor_had_in_hand_goes_to_another(make_crew, tmp_path):
    words = ["make", "make", f"kill-once {tmp_path / 'killed'}", "make", "make", "make"]
    with make_crew(make_header(), make_header()) as crew:
        crew.get_ready()
        for number, word in enumerate(words):
            crew.submit(make_task(number, word))
        assert not crew.has_room
        assert sorted(collect_all(crew)) == list(range(len(words)))
        assert crew.has_room
    assert (tmp_path / "killed").exists()


def test_shard_that_kills_its_actors_ends_the_job(make_crew):
    with make_crew(make_header()) as crew:
        crew.submit(make_task(7, "kill"))
        crew.submit(make_task(8, "make"))
        with pytest.raises(StoreError, match=r"shard 7 \(input rows 7 to 7\) killed 3 actors"):
            collect_all(crew)


def test_error_of_a_shard_is_the_error_of_the_job(make_crew):
    with make_crew(make_header()) as crew:
        crew.submit(make_task(0, "fail because of this"))
        with pytest.raises(ValueError, match=r"^because of this$"):
            collect_all(crew)


def test_actor_that_makes_other_bytes_is_refused(make_crew):
    headers = (make_header(software={"threads": threads}) for threads in (1, 2))
    with make_crew(*headers) as crew:
        crew.submit(make_task(0, "make"))
        with pytest.raises(
            UnsupportedError, match=r"on a-node .* first one: job\.software\.threads"
        ):
            collect_for_ever(crew)


def test_actor_that_outlives_its_driver_names_no_file(tmp_path, monkeypatch):
    actor = ShardActor(RECIPE, {}, has_gpus=False)
    actor.describe()
    rows = list(open_source(TEXTS).rows(0, SHARD_SIZE))
    marker = tmp_path / ".driver.tmp"
    is_lost = f"does not see in {tmp_path} what the driver wrote"
    with pytest.raises(StoreError, match=is_lost):
        actor.make(0, rows, marker)
    assert not list(tmp_path.iterdir())
    marker.touch()
    with monkeypatch.context() as patch:
        run = Extractor.run
        patch.setattr(Extractor, "run", lambda *given: marker.unlink() or run(*given))
        with pytest.raises(StoreError, match=is_lost):
            actor.make(0, rows, marker)
    assert not list(tmp_path.glob("*.arrow"))
    marker.touch()
    assert actor.make(0, rows, marker).num_rows == SHARD_SIZE - 1


def test_actor_that_fits_no_node_is_refused(ray, tmp_path):
    job = make_job(tmp_path / "store", TEXTS)
    with pytest.raises(UnsupportedError, match=r"needs 1000 CPUs and 0 GPUs of one node, and"):
        run_on_ray(job, Cluster(cpus_per_actor=1000, gpus_per_actor=0))


def test_actors_that_do_not_start_are_given_up(ray):
    actor = ray.remote(PlainActor).options(num_cpus=10_000)
    no_actor = pytest.raises(UnsupportedError, match=r"no actor within 0\.5 s")
    with Crew(ray, lambda: actor.remote(make_header()), 1, print, timeout=0.5) as crew, no_actor:
        crew.get_ready()


def test_actors_that_nothing_can_replace_end_the_job(ray):
    rooms = iter((0.01, 10_000))

    def start():
        return ray.remote(PlainActor).options(num_cpus=next(rooms)).remote(make_header())

    with Crew(ray, start, 1, print, timeout=0.5) as crew:
        crew.submit(make_task(0, "kill"))
        with pytest.raises(UnsupportedError, match=r"no actor within 0\.5 s"):
            collect_all(crew)


def test_node_on_which_no_model_loads_is_left_out(make_crew, capsys):
    with make_crew(make_header(), None, size=2) as crew:
        crew.get_ready()
        while "going on without" not in capsys.readouterr().out:
            crew.collect()
        crew.submit(make_task(0, "make"))
        assert collect_all(crew) == [0]


def test_models_that_load_nowhere_end_the_job(make_crew):
    nowhere = pytest.raises(UnsupportedError, match="3 actors in a row died before their model")
    with make_crew(None) as crew, nowhere:
        crew.get_ready()


def test_error_that_cannot_be_sent_is_no_death(make_crew):
    with make_crew(make_header()) as crew:
        crew.submit(make_task(0, "fail-unsendably"))
        with pytest.raises((UnsupportedError, TypeError)):
            collect_all(crew)


def test_address_at_which_nothing_listens_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(UnsupportedError, match=f"no Ray cluster at {address}: Connection refused"):
        open_session(Cluster(address=address), 1).__enter__()


def test_address_of_something_else_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer_as_a_web_server, args=(server,))
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UnsupportedError, match=f"what listens at {address} is not Ray"):
            open_session(Cluster(address=address), 1).__enter__()
        thread.join()


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"phiscope\[ray\]"):
        open_session(Cluster(), 1).__enter__()


@pytest.mark.parametrize(
    ("nodes", "cluster", "allotment"),
    [
        ([{"CPU": 16}], Cluster(), Allotment(num_actors=4, cpus=4, gpus=0)),
        ([{"CPU": 16, "GPU": 2}], Cluster(), Allotment(num_actors=2, cpus=1, gpus=1)),
        (
            [{"CPU": 16, "GPU": 2}],
            Cluster(gpus_per_actor=0.1, num_actors=30),
            Allotment(num_actors=16, cpus=1, gpus=0.1),
        ),
        (
            [{"CPU": 3}, {"CPU": 16, "GPU": 1}],
            Cluster(gpus_per_actor=0, num_actors=3),
            Allotment(num_actors=3, cpus=4, gpus=0),
        ),
        (
            [{"CPU": 16, "GPU": 2}],
            Cluster(gpus_per_actor=0.6),
            Allotment(num_actors=2, cpus=1, gpus=0.6),
        ),
    ],
)
def test_actors_are_as_many_as_fit_each_on_one_node(nodes, cluster, allotment):
    assert allot(nodes, cluster, num_threads=4) == allotment


@pytest.mark.parametrize(
    "wrong",
    [{"num_actors": 0}, {"gpus_per_actor": 1.5}, {"gpus_per_actor": -1}, {"cpus_per_actor": -1}],
)
def test_numbers_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        Cluster(**wrong)
