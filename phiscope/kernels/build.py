"""Building the kernels with the C++ compiler of this machine, once, and opening them."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from phiscope.errors import UnsupportedError

SOURCE = Path(__file__).parent / "source"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-march=native")
COMPILERS = ("c++", "g++", "clang++")


@cache
def find_obstacle() -> str | None:
    """Why the kernels cannot run here; None if they can. Builds them if that was not done yet."""
    try:
        open_kernels()
    except (UnsupportedError, OSError) as error:
        return str(error)
    return None


@cache
def open_kernels() -> ctypes.CDLL:
    """The library of all kernels; `UnsupportedError` says why there is none."""
    if os.environ.get("PHISCOPE_KERNELS") == "off":
        raise UnsupportedError("kernels are switched off by PHISCOPE_KERNELS=off")
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise UnsupportedError(f"there is no C++ compiler (looked for {', '.join(COMPILERS)})")
    path = _find_folder() / f"kernels-{_fingerprint(compiler)}.so"
    if not path.exists():
        build(compiler, FLAGS, path)
    return ctypes.CDLL(str(path))


def explain_bus_errors() -> None:
    """Let a process say why it dies when a mapped file was cut, if kernels are there."""
    if find_obstacle() is None:
        open_kernels().explain_bus_errors()


def name_compiler() -> str:
    """The compiler's own word for itself: another one may give other last bits."""
    name = open_kernels().name_compiler
    name.restype = ctypes.c_char_p
    found: bytes = name()
    return found.decode()


def build(compiler: str, flags: Sequence[str], path: Path) -> None:
    """Compile all sources into one library at `path`, which appears there only when it is whole.

    Raises `UnsupportedError` with the compiler's first words if it fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, ThreadPoolExecutor() as pool:
        sources = sorted(SOURCE.glob("*.cpp"))
        objects = [os.path.join(folder, f"{source.stem}.o") for source in sources]
        commands = [
            (compiler, *flags, "-c", str(source), "-o", out)
            for source, out in zip(sources, objects, strict=True)
        ]
        list(pool.map(_run, commands))
        library = os.path.join(folder, path.name)
        _run((compiler, *flags, "-shared", *objects, "-o", library))
        os.replace(library, path)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        words = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        raise UnsupportedError(f"{command[0]} cannot build the kernels: {words.strip()[:300]}")


def _fingerprint(compiler: str) -> str:
    """Changes with the sources, the compiler, the flags, and the kind of processor."""
    digest = hashlib.sha256()
    for source in sorted(SOURCE.iterdir()):
        digest.update(source.read_bytes())
    status = os.stat(os.path.realpath(compiler))
    parts = (compiler, status.st_size, status.st_mtime_ns, *FLAGS, platform.machine(), _read_cpu())
    digest.update(repr(parts).encode())
    return digest.hexdigest()[:16]


def _read_cpu() -> str:
    """The instructions a processor has, where Linux tells them, else its name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    told = [line for line in lines if line.startswith(("flags", "Features"))]
    return told[0] if told else platform.processor()


def _find_folder() -> Path:
    """The user's cache, else a folder of this process alone."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "phiscope"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="phiscope-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="phiscope-"))
