"""Progress bars on stderr: shown after two seconds, and only on a terminal."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def shown(things: Iterable[T], what: str, *, total: int | None = None) -> Iterator[T]:
    """Pass things on, with a bar that counts them."""
    bar: Iterator[T] = iter(tqdm(things, what, total, delay=2, disable=None, leave=False))
    return bar
