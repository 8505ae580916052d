"""Running an exercise against examples whose results are known another way.

The code comes from the tables of this package alone, so it is run where it is: `exec` in a
namespace with the built-in functions that exercises use and nothing else, and no import. A process
for each would cost a hundred times the rest. The limit is a number of lines, counted by a trace
function: unlike a limit of seconds it ends the same code at the same place on every machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from phiscope.errors import TrainingError

MAX_LINES = 2000
_FILE = "<exercise>"
_BUILTINS: dict[str, Any] = {
    function.__name__: function
    for function in (
        *(abs, all, any, dict, enumerate, int, len, list, max, min, range),
        *(reversed, set, sorted, str, sum, tuple, zip),
    )
}

Example = tuple[tuple[Any, ...], Any]
"""Arguments, and the result that is due."""


def verify(source: str, name: str, examples: Sequence[Example]) -> None:
    """Define a function and call it with the arguments of each example.

    Raises `TrainingError` if a result is not the one due, or the code fails or does not end.
    """
    namespace: dict[str, Any] = {"__builtins__": _BUILTINS}
    try:
        exec(compile(source, _FILE, "exec"), namespace)
        with _limited_lines(MAX_LINES * len(examples)):
            results = [namespace[name](*arguments) for arguments, _ in examples]
    except Exception as error:
        raise TrainingError(f"exercise {name!r} fails: {error!r}") from error
    for (arguments, due), result in zip(examples, results, strict=True):
        if result != due or type(result) is not type(due):
            raise TrainingError(f"exercise {name!r} of {arguments} is {result!r} and not {due!r}")


@contextmanager
def _limited_lines(limit: int) -> Iterator[None]:
    """Raise `RuntimeError` in an exercise that runs more lines than these."""
    rest = limit

    def count(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        nonlocal rest
        if frame.f_code.co_filename != _FILE:
            return None
        rest -= event == "line"
        if rest < 0:
            raise RuntimeError(f"it has not ended after {limit} lines")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)
