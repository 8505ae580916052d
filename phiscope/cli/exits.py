"""Exit codes, and how an error becomes one: a sentence on stderr, never a traceback.

An error that is not foreseen here is a bug of ours and keeps its traceback.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from phiscope.cli.printing import note
from phiscope.errors import (
    CheckpointError,
    ConfigError,
    HubError,
    InputError,
    PhiscopeError,
    PointError,
    TokenizerError,
)

OK = 0
FAILED = 1
USAGE = 2
BAD_ROWS = 3
CHECKPOINT_FAULT = 4
INTERRUPTED = 130


class UsageError(PhiscopeError):
    """Arguments that parse but cannot be served."""


_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (UsageError, USAGE),
    (PointError, USAGE),
    (InputError, USAGE),
    (ConfigError, CHECKPOINT_FAULT),
    (CheckpointError, CHECKPOINT_FAULT),
    (TokenizerError, CHECKPOINT_FAULT),
    (HubError, CHECKPOINT_FAULT),
    (PhiscopeError, FAILED),
    (OSError, FAILED),
)
"""The first that fits counts."""

_FORESEEN = (PhiscopeError, OSError)


def run_to_exit_code(job: Callable[[], int]) -> int:
    """Run a command; whatever it meets becomes an exit code and at most one line on stderr."""
    try:
        code = _run_and_flush(job)
    except KeyboardInterrupt:
        note("\nphiscope: interrupted")
        code = INTERRUPTED
    except BrokenPipeError:
        note("phiscope: the reader of stdout went away")
        code = FAILED
    except _FORESEEN as error:
        note(f"phiscope: {_describe(error)}")
        code = next(code for kind, code in _CODES if isinstance(error, kind))
    _drop_what_is_left()
    return code


@contextmanager
def usage_errors() -> Iterator[None]:
    """Report a value that a check below refuses as a usage error."""
    try:
        yield
    except PhiscopeError:
        raise
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def _run_and_flush(job: Callable[[], int]) -> int:
    if sys.stdout is None:
        raise OSError("stdout is closed, so there is nowhere to write")
    try:
        with _warnings_as_notes():
            return job()
    finally:
        sys.stdout.flush()


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Show a warning as a line of words, without the place in the code that it came from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: note(f"phiscope: warning: {message}")
        yield


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _drop_what_is_left() -> None:
    """Let what could not be written go, so that the interpreter does not stumble over it again."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
