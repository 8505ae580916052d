"""Two processes that talk by lines of JSON: one asks, the other computes and answers.

The asker waits for every answer, so that never more than one process computes.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

Handlers = Mapping[str, Callable[..., Any]]


class WorkerError(Exception):
    """A question that a worker could not answer."""


class Worker:
    """A process that answers."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] = {}) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )

    def ask(self, what: str, **arguments: Any) -> Any:
        """The answer to a question; `WorkerError` if there is none, or the process has died."""
        with suppress(BrokenPipeError):  # the empty answer below tells it
            print(json.dumps({"what": what, **arguments}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"the process {self.name} died with {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["value"]

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the process: it ends when its input does."""
        with suppress(BrokenPipeError):  # it has ended before
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve(handlers: Handlers) -> None:
    """Answer questions until there are no more. What handlers print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer_question(handlers, json.loads(line))), file=answers, flush=True)


def answer_question(handlers: Handlers, question: dict[str, Any]) -> dict[str, Any]:
    handler = handlers[question.pop("what")]
    try:
        return {"value": handler(**question)}
    except Exception as error:  # whatever a peer raises is its result
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
