"""Ctrl-C during a long job: the first asks it to end soon, the second ends it at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C only makes the given function answer True.

    Nothing changes outside the main thread, where signals cannot be caught, and in a process that
    was told to ignore Ctrl-C, as `nohup` does.
    """
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        with suppress(RuntimeError):  # the signal came in the midst of other words
            say("interrupted: finishing this shard; press Ctrl-C again to stop at once")

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
