"""The peers' process: loads one model, wraps it for each library, and answers questions.

PYTHON_OF_THE_PEERS worker.py CHECKPOINT DTYPE DEVICE [GROUP ...]
"""

import platform
import sys
import traceback
from functools import partial
from importlib.metadata import packages_distributions, version
from pathlib import Path

import torch
from libraries import LIBRARIES
from outcome import Setting, make_handlers
from pipe import serve
from reference import compute_states
from source import Source, load_source

PACKAGES = (
    *("torch", "transformers", "sentence-transformers", "transformer-lens", "interp-engine"),
    *("nnsight", "tokenizers", "accelerate", "numpy"),
)


def main() -> None:
    torch.set_grad_enabled(False)
    folder, dtype, device, *groups = sys.argv[1:]
    source = load_source(Path(folder), getattr(torch, dtype), device)
    settings, absent = make_settings(source, groups)
    handlers = make_handlers(settings) | {
        "absent": lambda: absent,
        "versions": read_versions,
        "reference": partial(save_reference, source),
    }
    serve(handlers)


def make_settings(source: Source, groups: list[str]) -> tuple[dict[str, Setting], dict[str, str]]:
    """The settings of these groups by name, and why others are absent."""
    settings: dict[str, Setting] = {}
    absent: dict[str, str] = {}
    for group in groups:
        try:
            settings |= {setting.name: setting for setting in LIBRARIES[group](source)}
        except Exception as error:  # a peer that cannot be had here is left out, with the reason
            traceback.print_exc()
            absent[group] = f"{type(error).__name__}: {error}"
    return settings, absent


def read_versions() -> dict[str, str]:
    present = {name for packages in packages_distributions().values() for name in packages}
    found = {name: version(name) for name in PACKAGES if name in present}
    return {"python": platform.python_version(), **found}


def save_reference(source: Source, texts: list[list[int]], path: str) -> None:
    """The states in float64: by number as transformers counts, a tensor (T, hidden) per text."""
    weights = source.model.state_dict()
    found = compute_states(weights, source.model.config, texts)
    states = [[x.cpu() for x in state] for state in found]
    del states[-2]  # the last block before the final norm, which has no number
    torch.save(states, path)


if __name__ == "__main__":
    main()
