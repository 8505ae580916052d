"""What a checkpoint folder holds (`describe`, from headers) and whether it is sound (`verify`)."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phiscope.checkpoint.folder import Checkpoint
from phiscope.checkpoint.layouts import Layout
from phiscope.checkpoint.quantized_folder import QuantizedCheckpoint
from phiscope.checkpoint.weights import find_non_finite, num_threads
from phiscope.config import PhiConfig, read_config
from phiscope.errors import PhiscopeError


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the headers of a checkpoint say."""

    folder: str
    config: PhiConfig
    layout: Layout | None
    """None for integer weights, whose format the config names."""
    dtypes: dict[str, int]
    """Tensors in each dtype."""
    num_tensors: int
    num_parameters: int
    files: dict[str, int]
    """Bytes of each weight file."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What reading every byte of a checkpoint found; `problems` is empty where it is sound."""

    folder: str
    problems: tuple[str, ...]
    non_finite: tuple[str, ...]
    """Stored names of the tensors that hold a NaN or an infinity."""
    sha256: dict[str, str]
    layout: Layout | None = None
    dtypes: dict[str, int] | None = None
    num_tensors: int = 0
    num_parameters: int = 0

    @property
    def sound(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"sound": self.sound}


def describe(folder: Path) -> Summary:
    """Summarise a checkpoint without reading its weights; raises as `load_model` does."""
    with _open(Path(folder)) as checkpoint:
        return _summarise(checkpoint)


def verify(folder: Path, *, on_bytes: Callable[[int], object] | None = None) -> Verification:
    """Read a whole checkpoint: headers, names, shapes, every number, and the files' hashes.

    A fault is reported, not raised. `on_bytes` is told the bytes read, which are about twice the
    weight files' sizes.
    """
    folder = Path(folder)
    try:
        with _open(folder) as checkpoint:
            summary = _summarise(checkpoint)
            tensors = checkpoint.weights.tensors.values()
            non_finite = tuple(find_non_finite(tensors, on_bytes=on_bytes))
            faults = _find_faults(checkpoint)
            hashes = _hash_files(folder, on_bytes)
            checkpoint.weights.check_unchanged()
    except PhiscopeError as error:
        hashes = _hash_files(folder, on_bytes)
        return Verification(
            folder=str(folder), problems=(str(error),), non_finite=(), sha256=hashes
        )
    problems = [f"{name!r} holds NaN or infinity" for name in non_finite] + faults
    return Verification(
        folder=str(folder),
        problems=tuple(problems),
        non_finite=non_finite,
        sha256=hashes,
        layout=summary.layout,
        dtypes=summary.dtypes,
        num_tensors=summary.num_tensors,
        num_parameters=summary.num_parameters,
    )


def _open(folder: Path) -> Checkpoint | QuantizedCheckpoint:
    is_float = read_config(folder).quantization is None
    return Checkpoint(folder) if is_float else QuantizedCheckpoint(folder)


def _find_faults(checkpoint: Checkpoint | QuantizedCheckpoint) -> list[str]:
    """What else than NaN and infinities cannot be: of integer weights alone."""
    return checkpoint.find_faults() if isinstance(checkpoint, QuantizedCheckpoint) else []


def _summarise(checkpoint: Checkpoint | QuantizedCheckpoint) -> Summary:
    return Summary(
        folder=str(checkpoint.folder),
        config=checkpoint.config,
        layout=checkpoint.layout,
        dtypes=checkpoint.dtypes,
        num_tensors=len(checkpoint.tensors),
        num_parameters=checkpoint.config.num_parameters,
        files={file.path.name: file.size for file in checkpoint.weights.files},
    )


def _hash_files(folder: Path, on_bytes: Callable[[int], object] | None) -> dict[str, str]:
    """SHA-256 of the config, the weight files and their index."""
    kinds = (".safetensors", ".bin", ".index.json")
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    paths = [
        path
        for path in found
        if path.is_file() and (path.name.endswith(kinds) or path.name == "config.json")
    ]
    hashes = {}
    with ThreadPoolExecutor(num_threads()) as pool:
        for path, digest in zip(paths, pool.map(_hash_file, paths), strict=True):
            hashes[path.name] = digest
            if on_bytes is not None:
                on_bytes(path.stat().st_size)
    return hashes


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"
