"""A crew: the actors of a Ray job, each with a shard at work and one waiting.

What an actor that dies had in hand goes to another. Only the shard it was at work on is blamed, and
only if it dies again and again does the job end. Ray waits for ever for room for an actor; so none
is given longer than a while in which no other works.
"""

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from phiscope.errors import StoreError, UnsupportedError
from phiscope.extraction.inputs import Row
from phiscope.store import ShardRecord
from phiscope.store.header import StoreHeader

_CALLS = 2
"""Of one actor at a time."""
_DEATHS = 3
_LOOK_SECONDS = 1.0
"""After which a wait is looked at again, for Ctrl-C."""
_LOSS_SECONDS = 30.0
"""For Ray to tell what became of a dead actor's calls."""

_COLORS = re.compile(r"\x1b\[[0-9;]*m")


class Description(NamedTuple):
    """What an actor says of itself once its model is loaded."""

    node: str
    header: StoreHeader
    """Of the stores whose shards it makes."""


class Task(NamedTuple):
    """A shard to be made."""

    number: int
    rows: Sequence[Row]
    marker: Path


Done = tuple[Task, ShardRecord]


@dataclass(eq=False)
class Member:
    """An actor and its calls, oldest first; None is the one that loads its model."""

    actor: Any
    calls: dict[Any, Task | None]
    ping: Any
    """The call that any actor answers as soon as its process is there."""
    node: str = "a node"
    is_ready: bool = False

    @property
    def has_room(self) -> bool:
        return self.is_ready and len(self.calls) < _CALLS


class Crew:
    """Actors, as many as `start` is called for; a context manager that kills them in the end."""

    def __init__(
        self,
        ray: Any,
        start: Callable[[], Any],
        size: int,
        say: Callable[[str], None],
        *,
        timeout: float = 120.0,
    ) -> None:
        self.header: StoreHeader | None = None
        """What the first actor that was ready makes shards of; all others must make the same."""
        self._ray = ray
        self._start = start
        self._say = say
        self._timeout = timeout
        """Seconds until an actor's process must have started where no other has."""
        self._alone_since: float | None = None
        """Since when there is no process."""
        self._waiting: deque[Task] = deque()
        self._deaths: Counter[int | None] = Counter()
        """Actors that died at each shard, or in a row while they loaded the model."""
        self._members = [self._engage() for _ in range(size)]

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            self._ray.kill(member.actor)

    @property
    def has_room(self) -> bool:
        """Whether an actor could begin with one more shard, or have it wait."""
        return not self._waiting and any(member.has_room for member in self._members)

    @property
    def is_busy(self) -> bool:
        """Whether shards are to come that were submitted."""
        return bool(self._waiting) or any(
            task is not None for member in self._members for task in member.calls.values()
        )

    def get_ready(self) -> StoreHeader:
        """Wait until the first actor is ready.

        Raises `UnsupportedError` if none has started in time; its model may take longer.
        """
        while self.header is None:
            self.collect()
        return self.header

    def submit(self, task: Task) -> None:
        """Have a shard made as soon as an actor has room."""
        self._waiting.append(task)
        self._hand_out()

    def collect(self) -> list[Done]:
        """Wait a moment, and return the shards that are done by then.

        Raises the error of a shard that cannot be made, `StoreError` for one that kills its actors,
        and `UnsupportedError` for an actor that would make other shards than the first, or if Ray
        has had no room for any actor for a while.
        """
        self._check_started()
        self._hand_out()
        owners = {call: member for member in self._members for call in member.calls}
        ready, _ = self._ray.wait(list(owners), timeout=_LOOK_SECONDS)
        return [done for call in ready for done in self._settle(owners[call], call)]

    def _engage(self) -> Member:
        actor = self._start()
        return Member(actor, {actor.describe.remote(): None}, actor.ping.remote())

    def _check_started(self) -> None:
        """Raise `UnsupportedError` if there has been no process of an actor for too long."""
        if any(member.is_ready for member in self._members) or self._has_process():
            self._alone_since = None
            return
        self._alone_since = self._alone_since or time.monotonic()
        if time.monotonic() - self._alone_since > self._timeout:
            raise UnsupportedError(
                f"Ray has started no actor within {self._timeout:g} s; its nodes may be taken by"
                " other work, or gone: wait for them, or ask for fewer CPUs and GPUs"
            )

    def _has_process(self) -> bool:
        pings = [member.ping for member in self._members]
        return bool(self._ray.wait(pings, timeout=0)[0])

    def _hand_out(self) -> None:
        while self._waiting:
            free = [member for member in self._members if member.has_room]
            if not free:
                return
            member = min(free, key=lambda member: len(member.calls))
            task = self._waiting.popleft()
            member.calls[member.actor.make.remote(*task)] = task

    def _settle(self, member: Member, call: Any) -> list[Done]:
        """Take the result of a call, or of all that an actor did before it died."""
        try:
            result = self._take(call)
        except self._deaths_of_actors as error:
            return self._replace(member, _last_line(error))
        except self._ray.exceptions.RayError as error:  # one that cannot be sent, say
            raise UnsupportedError(f"an actor on {member.node}: {_last_line(error)}") from error
        task = member.calls.pop(call)
        if task is not None:
            return [(task, result)]
        self._admit(member, result)
        return []

    @property
    def _deaths_of_actors(self) -> tuple[type[Exception], ...]:
        errors = self._ray.exceptions
        return (
            errors.RayActorError,
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
            errors.ObjectLostError,
            errors.GetTimeoutError,
        )

    def _take(self, call: Any, timeout: float | None = None) -> Any:
        """The result of a call; its own error if it failed, a `RayError` if its actor did."""
        try:
            return self._ray.get(call, timeout=timeout)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from error

    def _admit(self, member: Member, described: Description) -> None:
        """Let an actor have shards if what it makes is what the others make."""
        self._deaths.pop(None, None)
        self.header = self.header or described.header
        difference = described.header.find_difference(self.header)
        if difference is not None:
            raise UnsupportedError(
                f"the actor on {described.node} would make other bytes than the first one:"
                f" {difference.name} is {difference.wanted!r} there, not {difference.stored!r};"
                " name the mode, and use nodes that are alike"
            )
        member.node, member.is_ready = described.node, True

    def _replace(self, member: Member, reason: str) -> list[Done]:
        """Engage another actor for a dead one; what it had in hand is not lost."""
        self._ray.kill(member.actor)
        done: list[Done] = []
        lost: list[Task | None] = []
        for call, task in member.calls.items():
            try:
                record = self._take(call, _LOSS_SECONDS)
            except self._ray.exceptions.RayError:
                lost.append(task)
            else:
                done += [(task, record)] if task is not None else []
        is_replaced = not lost or self._blame(lost[0], reason)
        tasks = [task for task in lost if task is not None]
        self._waiting.extendleft(reversed(tasks))
        self._say(f"an actor died on {member.node}; others take the {len(tasks)} shards it had")
        place = self._members.index(member)
        self._members[place : place + 1] = [self._engage()] if is_replaced else []
        return done

    def _blame(self, task: Task | None, reason: str) -> bool:
        """Whether another actor shall take the dead one's place; the job's end if none can work."""
        number = None if task is None else task.number
        self._deaths[number] += 1
        if self._deaths[number] < _DEATHS:
            return True
        if task is None:
            what = f"{_DEATHS} actors in a row died before their model was loaded: {reason}"
            if not any(member.is_ready for member in self._members):
                raise UnsupportedError(what)
            self._say(f"{what}; going on without")
            return False
        raise StoreError(
            f"shard {number} (input rows {task.rows[0].index} to {task.rows[-1].index}) killed"
            f" {_DEATHS} actors; it may want more memory than a node has: give a smaller"
            f" shard_size or token_budget, or fewer actors (the last one: {reason})"
        )


def _last_line(error: BaseException) -> str:
    """What a long report of Ray's comes to."""
    lines = [line.strip() for line in _COLORS.sub("", str(error)).splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)
