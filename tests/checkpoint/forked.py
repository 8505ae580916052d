"""Runs `resolve` in forks of a process that has all imported but huggingface_hub itself.

    python forked.py        reads one JSON request a line: {"name", "revision", "environment"},
                            writes one JSON answer a line: {"stdout", "stderr"}

huggingface_hub reads its environment when it is imported, so each resolution needs a process of its
own; torch and what huggingface_hub imports, which take most of a start, are imported once for all.
"""

import importlib
import json
import os
import sys
import tempfile

from phiscope.checkpoint.hub import resolve
from phiscope.errors import HubError


def main() -> None:
    import_what_it_imports("huggingface_hub")
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def import_what_it_imports(package: str) -> None:
    """Import a package and forget it, so that only its own modules are to be run again."""
    assert package not in sys.modules
    importlib.import_module(package).snapshot_download  # noqa: B018 (imported on first use)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def answer(request: dict) -> dict:
    """What a fork of this process prints."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        child = os.fork()
        if child == 0:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            resolve_and_exit(request)
        os.waitpid(child, 0)
        return {"stdout": read(stdout), "stderr": read(stderr)}


def resolve_and_exit(request: dict) -> None:
    os.environ.clear()
    os.environ.update(request["environment"])
    try:
        print(resolve(request["name"], revision=request["revision"] or None))
    except HubError as error:
        print(f"HubError: {error}", file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def read(file) -> str:
    file.seek(0)
    return file.read().decode()


if __name__ == "__main__":
    main()
