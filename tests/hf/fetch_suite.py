"""Fetch the tests that transformers' source distribution holds, of the version that is installed.

    python tests/hf/fetch_suite.py FOLDER

leaves them in FOLDER/transformers-VERSION/tests; they are not part of this repository.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path


def fetch(folder: Path) -> None:
    """Download the distribution and unpack its tests, unless they are there."""
    name = f"transformers-{version('transformers')}"
    if (folder / name / "tests").is_dir():
        return
    with tempfile.TemporaryDirectory() as download:
        requirement = name.replace("-", "==", 1)
        options = ["--no-deps", "--no-build-isolation", "--no-binary", "transformers"]
        command = [sys.executable, "-m", "pip", "--quiet", "download", *options, requirement]
        subprocess.run(command, cwd=download, check=True)
        with tarfile.open(Path(download) / f"{name}.tar.gz") as archive:
            members = [x for x in archive if x.name.startswith(f"{name}/tests/")]
            archive.extractall(folder, members=members, filter="data")


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
