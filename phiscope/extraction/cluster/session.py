"""A Ray session: one that is there, or one on this machine for as long as a job takes.

Ray waits without a word for what a cluster cannot give, so all of that is asked for first.
"""

import logging
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from phiscope.errors import MissingExtraError, UnsupportedError
from phiscope.runtime import describe_machine

_CONNECT_SECONDS = 5.0
_SETTINGS = b"\x04"
"""The type of the frame that both sides of an HTTP/2 connection begin with (RFC 9113)."""
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0" * 5
_LONGEST_FOLDER = 30
"""Of the folder for Ray's own, behind which come 77 bytes; a socket's name has 107 at most."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where a job runs, and what each of its actors gets; each holds a model of its own."""

    address: str | None = None
    """host:port, ray://host:port or auto; None: a Ray of the job's own, on this machine."""
    num_actors: int | None = None
    """None: as many as there is room for."""
    gpus_per_actor: float | None = None
    """May be a fraction. None: one where there are GPUs."""
    cpus_per_actor: float | None = None
    """None: one for an actor with a GPU, else as many as it has threads."""
    start_timeout: float = 120.0
    """Seconds until an actor's process must have started where no other has."""

    def __post_init__(self) -> None:
        if self.num_actors is not None and self.num_actors < 1:
            raise ValueError(f"a job needs an actor at least, got {self.num_actors}")
        if self.cpus_per_actor is not None and self.cpus_per_actor < 0:
            raise ValueError(f"cpus_per_actor must not be negative, got {self.cpus_per_actor}")
        gpus = self.gpus_per_actor or 0.0
        if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
            raise ValueError(f"gpus_per_actor is a fraction of one or a whole number, got {gpus}")


@dataclass(frozen=True, kw_only=True)
class Allotment:
    """What was found to fit."""

    num_actors: int
    cpus: float
    gpus: float


@contextmanager
def open_session(cluster: Cluster, num_threads: int) -> Iterator[Any]:
    """Ray, connected; a process that is connected already stays so.

    Raises `MissingExtraError` without Ray and `UnsupportedError` where there is no cluster.
    """
    if cluster.address is None:  # else `uv run` has Ray copy the working folder, corpus and all
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("ray") from error
    address = cluster.address
    if address is not None:
        _check_address(address)
    if ray.is_initialized():
        yield ray
        return
    with _joined(ray, address) if address else _started(ray, cluster, num_threads):
        yield ray


def allot(nodes: Sequence[Mapping[str, float]], cluster: Cluster, num_threads: int) -> Allotment:
    """How many actors fit on nodes of these resources, and what each gets.

    Raises `UnsupportedError` if there is no room for one.
    """
    gpus = cluster.gpus_per_actor
    if gpus is None:
        gpus = float(any(node.get("GPU", 0) >= 1 for node in nodes))
    cpus = cluster.cpus_per_actor
    if cpus is None:
        cpus = 1.0 if gpus else float(num_threads)
    fitting = sum(_count_fitting(node, cpus, gpus) for node in nodes)
    if not fitting:
        raise UnsupportedError(
            f"an actor needs {cpus:g} CPUs and {gpus:g} GPUs of one node, and the Ray cluster's"
            f" nodes have {_describe_nodes(nodes)}; ask for less (--threads, --gpus-per-actor), or"
            " add nodes"
        )
    return Allotment(num_actors=min(cluster.num_actors or fitting, fitting), cpus=cpus, gpus=gpus)


def list_resources(ray: Any) -> list[dict[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def _started(ray: Any, cluster: Cluster, num_threads: int) -> Iterator[None]:
    """A Ray on this machine, whose files are removed in the end."""
    folder = tempfile.mkdtemp(prefix="ray-", dir=_find_short_folder())
    num_cpus = _count_cpus(cluster, num_threads)
    try:
        with _environment(RAY_USAGE_STATS_ENABLED="0"):
            _connect(
                ray, address="local", num_cpus=num_cpus, include_dashboard=False, _temp_dir=folder
            )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _joined(ray: Any, address: str) -> Iterator[None]:
    """A cluster that is there, left in the end."""
    _connect(ray, address=address)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(ray: Any, *, address: str, **settings: Any) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = "on this machine" if address == "local" else f"at {address}"
        remedy = (
            ""
            if address == "local"
            else ("; this machine must be one of its nodes, or the address ray://HEAD:10001")
        )
        raise UnsupportedError(f"no Ray cluster {where}: {_first_line(error)}{remedy}") from error


def _count_cpus(cluster: Cluster, num_threads: int) -> int:
    """CPUs for a Ray of our own to count with: never fewer than its actors ask for."""
    each = cluster.cpus_per_actor or num_threads
    return max(describe_machine().num_cores, math.ceil((cluster.num_actors or 1) * each))


def _check_address(address: str) -> None:
    """Raise `UnsupportedError` if no Ray listens there, for which Ray itself would wait minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        is_ray = _speaks_grpc(host.strip("[]"), int(port))
    except OSError as error:
        raise UnsupportedError(
            f"no Ray cluster at {address}: {error.strerror or error}; start one with"
            " `ray start --head`, or leave the address out"
        ) from error
    if not is_ray:
        raise UnsupportedError(
            f"what listens at {address} is not Ray; give the port that `ray start` named (6379, or"
            " 10001 behind ray://), not that of its dashboard"
        )


def _speaks_grpc(host: str, port: int) -> bool:
    """Whether a server answers as HTTP/2 servers do, which Ray's are."""
    with socket.create_connection((host, port), timeout=_CONNECT_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return True  # it would not answer to plain words
        connection.sendall(_HTTP2_PREFACE)
        return connection.recv(4)[3:] == _SETTINGS


def _count_fitting(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    wanted = {"CPU": cpus, "GPU": gpus}
    rooms = [math.floor(node.get(name, 0) / need + 1e-6) for name, need in wanted.items() if need]
    if 0 < gpus < 1:  # a fraction is of one GPU, never of two
        rooms.append(math.floor(node.get("GPU", 0)) * math.floor(1 / gpus + 1e-6))
    return min(rooms, default=1)


def _describe_nodes(nodes: Sequence[Mapping[str, float]]) -> str:
    sizes = dict.fromkeys((node.get("CPU", 0), node.get("GPU", 0)) for node in nodes)
    return "; ".join(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in sizes) or "nothing"


def _find_short_folder() -> str:
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) <= _LONGEST_FOLDER else "/tmp"


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set variables that are not set, for processes that are started within the block."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
