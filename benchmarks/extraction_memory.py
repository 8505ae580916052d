"""Extract 1,000 and 100,000 rows with `tiny`: peak memory, and what killing the job does.

Each job is a process of its own, the command as a user types it. The long job is run once to its
end, once killed at random moments and resumed until it is done, and once on a Ray of its own, whose
actors are killed; all folders must then hold the same files, byte for byte, and be verified.

    python benchmarks/extraction_memory.py [--kills 6] [-- --shard-size 5000]
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import write_result

JOB = ("--model", "tiny", "--points", "resid_post.3", "--pool", "mean")
RAY = ("--ray", "--actors", "3")
DEATHS = (0.25, 0.5)
"""At which shares of the files an actor is killed."""
PIECES = ("def", "return", "value", "for", "in", "range", "print", "self", "=", "+", "(x)", "[0]")
LENGTHS = (3, 30)
"""Words in a row."""
LOOK_SECONDS = 0.05
FIRST_MOMENT = 1.0
"""Seconds before which no job is killed: it still imports."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs=2, default=[1_000, 100_000])
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", type=Path, help="where to work; default a temporary folder")
    parser.add_argument("--name", default="extraction_memory")
    parser.add_argument("arguments", nargs="*", help="more arguments of `phiscope extract`")
    options = parser.parse_args()
    with TemporaryDirectory(dir=options.folder) as folder:
        write_result(options.name, measure(Path(folder), options))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    few, many = (Job.make(folder, rows, options.arguments) for rows in options.rows)
    jobs = {job.rows: job.run() for job in (few, many)}
    long = jobs[many.rows]
    killed = replace(many, out=folder / "killed")
    moments = random.Random(options.seed)
    kills = list(kill_often(killed, options.kills, long["seconds"], moments))
    killed.run()
    crew = replace(many, out=folder / "ray", arguments=(*options.arguments, *RAY))
    ray = run_while_actors_die(crew, len(files(many.out)))
    differences = compare(many.out, killed.out) + compare(many.out, crew.out)
    if differences:
        print(f"the folders differ in {', '.join(differences)}", file=sys.stderr)
    return {
        "command": " ".join(("phiscope extract ROWS.txt --out DIR", *JOB, *options.arguments)),
        "jobs": [{"rows": rows, **figures} for rows, figures in jobs.items()],
        "peak_growth_mb": round(long["peak_mb"] - jobs[few.rows]["peak_mb"], 1),
        "kills": kills,
        "files_compared": len(hash_files(many.out)),
        "killed_and_resumed_is_identical": not differences,
        "files_that_differ": differences,
        "ray": ray,
        "verified": {"killed": verify(killed.out), "ray": verify(crew.out)},
    }


@dataclass(frozen=True)
class Job:
    """One extraction into a folder of its own."""

    rows: int
    source: Path
    out: Path
    arguments: Sequence[str]

    @classmethod
    def make(cls, folder: Path, rows: int, arguments: Sequence[str]) -> "Job":
        source = folder / f"{rows}.txt"
        write_rows(source, rows)
        return cls(rows, source, folder / f"states_{rows}", arguments)

    def command(self) -> list[str]:
        arguments = ["extract", str(self.source), *JOB, "--out", str(self.out), *self.arguments]
        return [sys.executable, "-m", "phiscope", *arguments]

    def start(self) -> subprocess.Popen[bytes]:
        """Begin, or go on where an earlier start was interrupted: the command is the same."""
        return subprocess.Popen(self.command(), stdout=sys.stderr)

    def run(self) -> dict[str, float]:
        """Run to the end; how long it took, and its peak of memory."""
        begin, peak = time.perf_counter(), 0
        with self.start() as process:
            while process.poll() is None:
                peak = max(peak, read_peak(process.pid))
                time.sleep(LOOK_SECONDS)
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(self.command())} failed with {process.returncode}")
        seconds = time.perf_counter() - begin
        return {
            "seconds": round(seconds, 1),
            "peak_mb": round(peak / 1e6, 1),
            "store_mb": round(sum(path.stat().st_size for path in files(self.out)) / 1e6, 1),
        }


def kill_often(
    job: Job, count: int, seconds: float, moments: random.Random
) -> Iterator[dict[str, object]]:
    """Start or resume a job and kill it, again and again; say where each kill found it.

    Together they run about three quarters as long as an uninterrupted job, so that some is left.
    """
    for _ in range(count):
        moment = FIRST_MOMENT + moments.uniform(0, 1.5 * seconds / count)
        with job.start() as process:
            try:
                process.wait(timeout=moment)
            except subprocess.TimeoutExpired:
                process.kill()
        if process.returncode == 0:
            return
        if process.returncode > 0:
            raise SystemExit(f"a resumed job failed with {process.returncode}")
        found = sorted(path.name for path in files(job.out))
        yield {
            "after_seconds": round(moment, 2),
            "files": len(found),
            "store_mb": round(sum(path.stat().st_size for path in files(job.out)) / 1e6, 1),
        }


def run_while_actors_die(job: Job, num_files: int) -> dict[str, object]:
    """Run a job on Ray to its end, with an actor killed now and then."""
    begin, deaths = time.perf_counter(), []
    with job.start() as process:
        for share in DEATHS:
            while process.poll() is None and len(files(job.out)) < share * num_files:
                time.sleep(LOOK_SECONDS)
            actors = list(find_actors())
            if actors:
                os.kill(actors[0], signal.SIGKILL)
                deaths.append({"files": len(files(job.out)), "actors": len(actors)})
    if process.returncode != 0 or len(deaths) < len(DEATHS):
        raise SystemExit(f"on Ray: exit code {process.returncode}, {len(deaths)} actors killed")
    return {
        "arguments": " ".join(RAY),
        "seconds": round(time.perf_counter() - begin, 1),
        "actors_killed": deaths,
    }


def find_actors() -> Iterator[int]:
    """The processes of Ray actors that make shards."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if path.read_bytes().startswith(b"ray::ShardActor"):
                yield int(path.parent.name)


def verify(folder: Path) -> dict[str, object]:
    """What `phiscope verify` finds; it exits with another code than 0 if that is not sound."""
    command = [sys.executable, "-m", "phiscope", "verify", str(folder), "--rows", "256", "--json"]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    told = json.loads(found.stdout)
    return {name: told[name] for name in ("sound", "faults", "verification")}


def compare(first: Path, second: Path) -> list[str]:
    """The names of files that only one folder has, or that differ."""
    hashes, others = hash_files(first), hash_files(second)
    names = hashes.keys() | others.keys()
    return sorted(name for name in names if hashes.get(name) != others.get(name))


def hash_files(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in files(folder):
        with path.open("rb") as file:
            hashes[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def write_rows(path: Path, count: int, seed: int = 0) -> None:
    """Lines of code-like words; the first rows of a longer file are those of a shorter one."""
    rng = random.Random(seed)
    with path.open("w", encoding="ascii") as file:
        for _ in range(count):
            words = rng.choices(PIECES, k=rng.randint(*LENGTHS))
            print(*words, file=file)


def read_peak(pid: int) -> int:
    """Bytes of memory a process held at most so far; 0 when it is about to end."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


if __name__ == "__main__":
    main()
