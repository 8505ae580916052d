"""What a run over some texts gives: for each kind of result its values and its seconds.

States are numbered as transformers numbers them: 0 the embeddings, i the output of block i - 1, the
last one after the final norm. Pooled kinds hold the mean and the last token of each text.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

KINDS = {
    "layer_pooled": "(a) one layer, mean and last",
    "all_pooled": "(b) all states, mean and last",
    "layer_tokens": "(c) all tokens of one layer",
    "final_pooled": "the last state alone, mean and last",
    "prefill": "the forward alone, nothing kept",
}


@dataclass
class Outcome:
    """Rows in the order of the texts."""

    pooled: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    """By kind and number of the state: (texts, 2, hidden)."""
    tokens: list[Tensor] = field(default_factory=list)
    """(T, hidden) of each text."""
    seconds: dict[str, float] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the model computes."""

    @contextmanager
    def time(self, *kinds: str) -> Iterator[None]:
        """Charge what happens to these kinds: a forward that serves several is charged to each."""
        begin = time.perf_counter()
        yield
        wait_for(self.device)
        passed = time.perf_counter() - begin
        for kind in kinds:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + passed

    def save(self, path: str) -> str:
        """Write the values, in fp32, and return where they are."""
        pooled = {
            kind: {state: rows.float() for state, rows in states.items()}
            for kind, states in self.pooled.items()
        }
        tokens = [rows.float() for rows in self.tokens]
        torch.save({"pooled": pooled, "tokens": tokens}, path)
        return path


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to run: a row of the table."""

    name: str
    group: str
    what: str
    kinds: tuple[str, ...]
    run: Callable[[list[list[int]], tuple[str, ...]], Outcome]
    """Takes texts, and which of its kinds are wanted."""
    takes_short: bool = False
    """Whether it is also run on the short texts."""

    def describe(self) -> dict[str, object]:
        names = ("name", "group", "what", "kinds", "takes_short")
        return {name: getattr(self, name) for name in names}


def make_handlers(settings: Mapping[str, Setting]) -> dict[str, Callable[..., object]]:
    """What the asking process may ask about settings."""
    return {
        "settings": lambda: [setting.describe() for setting in settings.values()],
        "run": lambda name, texts, kinds: settings[name].run(texts, tuple(kinds)).seconds,
        "save": lambda name, texts, path: (
            settings[name].run(texts, settings[name].kinds).save(path)
        ),
        "peak_memory": peak_memory,
    }


def peak_memory() -> int:
    """Bytes of memory this process held at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
