"""Everyone who runs: phiscope's process and the peers', their settings, and who has dropped out."""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipe import Worker, WorkerError

HERE = Path(__file__).parent
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE, HERE.parent / "runners"))),
}
OURS = "phiscope"
PEERS = (
    *("transformers", "hooks", "sentence-transformers", "TransformerLens", "interp-engine"),
    *("nnsight", "transformers-fp32"),
)


@dataclass
class Crew:
    """Who runs what; one process at a time."""

    workers: dict[str, Worker] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """As `outcome.Setting` describes itself, by name."""
    absent: dict[str, str] = field(default_factory=dict)
    """Groups and settings that are left out or have failed, and why."""
    _owners: dict[str, Worker] = field(default_factory=dict)
    _begin: float = field(default_factory=time.perf_counter)

    def start(self, name: str, python: str, script: str, *arguments: str) -> Worker:
        """Start a process and learn its settings."""
        worker = Worker(name, [python, str(HERE / script), *arguments], ENVIRONMENT)
        try:
            settings = worker.ask("settings")
        except WorkerError:
            worker.close()
            raise
        for setting in settings:
            self.settings[setting["name"]] = setting
            self._owners[setting["name"]] = worker
        self.workers[name] = worker
        self.tell(f"{name} is ready: {len(self.settings)} settings in all")
        return worker

    @property
    def present(self) -> list[str]:
        """The names of the settings that can be run."""
        return [name for name in self.settings if name not in self.absent]

    def is_ours(self, name: str) -> bool:
        """Whether a setting is one of phiscope's."""
        return self._owners[name] is self.workers.get(OURS)

    def ask(self, name: str, what: str, **arguments: Any) -> Any:
        """A setting's answer; None without one, and then it is absent from there on.

        With a process that died all of its settings are.
        """
        worker = self._owners[name]
        try:
            return worker.ask(what, name=name, **arguments)
        except WorkerError as error:
            others = self.present if not worker.is_alive else []
            lost = {name, *(other for other in others if self._owners[other] is worker)}
            self.absent |= dict.fromkeys(sorted(lost), str(error))
            self.tell(f"{name}: {error}")
            return None

    def ask_process(self, name: str, what: str) -> Any:
        """An answer about a process; None if there is none or it has died."""
        worker = self.workers.get(name)
        return worker.ask(what) if worker is not None and worker.is_alive else None

    def tell(self, words: str) -> None:
        print(f"{time.perf_counter() - self._begin:7.1f} s  {words}", file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
