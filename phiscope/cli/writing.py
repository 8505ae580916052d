"""Files that commands write: under a temporary name first, so that none is ever half there."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from phiscope.cli.exits import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def check_name(out: str | None, *endings: str) -> None:
    """Refuse a file name with an ending that says nothing of the format."""
    if out is not None and not out.endswith(endings):
        raise UsageError(f"--out {out}: the name must end in {' or '.join(endings)}")
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {Path(out).absolute().parent}")


def write_tensors(out: str, tensors: Mapping[str, "Tensor"]) -> None:
    """Write a .safetensors file."""
    from phiscope.checkpoint.safetensors_format import write_safetensors

    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_safetensors(Path(out), entries, tensors.values())


def write_array(out: str, array: "NDArray[Any]") -> None:
    """Write a .npy file."""
    import numpy as np

    _write(Path(out), lambda file: np.save(file, array))


def write_lines(out: Path, lines: Iterable[str]) -> None:
    """Write a text file, line by line as they come."""
    _write(out, lambda file: file.writelines(f"{line}\n".encode() for line in lines))


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
