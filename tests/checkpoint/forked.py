"""Runs `resolve` in forks of a process that has torch, and not yet huggingface_hub, imported.

    python forked.py        reads one JSON request a line: {"name", "revision", "environment"},
                            writes one JSON answer a line: {"stdout", "stderr"}

huggingface_hub reads its environment when it is imported, so each resolution needs a process of its
own; torch, which takes most of a start, is imported once for all of them.
"""

import json
import os
import sys
import tempfile

from phiscope.checkpoint.hub import resolve
from phiscope.errors import HubError


def main() -> None:
    assert "huggingface_hub" not in sys.modules
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


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
