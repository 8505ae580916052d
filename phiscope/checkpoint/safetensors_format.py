"""The safetensors format: a strict reader of headers, and a writer that streams.

A file is the header's length (8 bytes), the header (JSON: name to dtype, shape, byte range), the
tensors. Nothing in a header is believed before it is checked against the file's real size.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from phiscope.checkpoint.stored import MAX_HEADER_BYTES, StoredTensor, WeightFile, view_bytes
from phiscope.errors import CheckpointError
from phiscope.strict import parse_json_object

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = {"format": "pt"}  # without it transformers refuses the file

Shape = tuple[int, ...]


def read_header(file: WeightFile) -> dict[str, StoredTensor]:
    """Where each tensor of a safetensors file lies, in the file's order."""
    header, start = _read_entries(file)
    _check_metadata(file.path, header.pop("__metadata__", {}))
    spans = {name: _parse_entry(file.path, name, header[name]) for name in header}
    _check_tiling(file, {name: span for name, (_, _, span) in spans.items()}, start)
    return {
        name: StoredTensor(name, dtype, shape, file, start + begin)
        for name, (dtype, shape, (begin, _)) in spans.items()
    }


def read_metadata(file: WeightFile) -> dict[str, str]:
    """What a safetensors file says of itself; nothing where it is silent."""
    header, _ = _read_entries(file)
    metadata: dict[str, str] = header.get("__metadata__", {})
    _check_metadata(file.path, metadata)
    return metadata


def write_safetensors(
    path: Path,
    entries: Mapping[str, tuple[torch.dtype, Shape]],
    tensors: Iterable[torch.Tensor],
    *,
    alignment: int = 8,
) -> None:
    """Write the tensors, which come one at a time in the entries' order.

    They begin at a multiple of `alignment` bytes. The bytes go to a temporary name, reach the disk,
    and only then take the final name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(_make_header(entries, alignment))
            _write_all(file, entries, tensors)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file that is on the disk when this returns."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file that is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(
    file: BinaryIO,
    entries: Mapping[str, tuple[torch.dtype, Shape]],
    tensors: Iterable[torch.Tensor],
) -> None:
    for (name, (dtype, shape)), tensor in zip(entries.items(), tensors, strict=True):
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name!r} was announced as {dtype} {shape} and came as {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
        file.write(view_bytes(tensor.cpu().contiguous()))


def _make_header(entries: Mapping[str, tuple[torch.dtype, Shape]], alignment: int) -> bytes:
    header: dict[str, Any] = {"__metadata__": _METADATA}
    end = 0
    for name, (dtype, shape) in entries.items():
        begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text


def _read_entries(file: WeightFile) -> tuple[dict[str, Any], int]:
    """The header as it stands, and where the tensors begin."""
    length = _read_header_length(file)
    text = file.read(8, length, "the header")
    return parse_json_object(text, f"the header of {file.path}", CheckpointError), 8 + length


def _read_header_length(file: WeightFile) -> int:
    if file.size < 8:
        raise CheckpointError(f"{file.path} has {file.size} bytes, too few for a safetensors file")
    length = int.from_bytes(file.read(0, 8, "the header's length"), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file.path} claims a header of {length:,} bytes, above {MAX_HEADER_BYTES:,}; "
            "it is damaged or no safetensors file"
        )
    if 8 + length > file.size:
        raise CheckpointError(
            f"{file.path} claims a header of {length:,} bytes and has {file.size:,} in all; "
            "it was cut short; fetch it again"
        )
    return length


def _check_metadata(path: Path, metadata: object) -> None:
    sound = isinstance(metadata, dict) and all(isinstance(x, str) for x in metadata.values())
    if not sound:
        raise CheckpointError(f"{path}: __metadata__ must map names to strings, got {metadata!r}")


def _parse_entry(
    path: Path, name: str, entry: object
) -> tuple[torch.dtype, Shape, tuple[int, int]]:
    """Dtype, shape and byte range of one tensor, sound in themselves."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: {name!r} must have dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(f"{path}: {name!r} has the unknown dtype {entry['dtype']!r}")
    shape, span = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape):
        raise CheckpointError(f"{path}: {name!r} has the impossible shape {shape!r}")
    if not _are_counts(span) or len(span) != 2 or span[0] > span[1]:
        raise CheckpointError(f"{path}: {name!r} has impossible data_offsets {span!r}")
    size = dtype.itemsize
    for count in shape:
        size *= count
    if size != span[1] - span[0]:
        raise CheckpointError(
            f"{path}: {name!r} of shape {shape} and dtype {entry['dtype']} needs {size:,} bytes, "
            f"its data_offsets give {span[1] - span[0]:,}"
        )
    return dtype, tuple(shape), (span[0], span[1])


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**63 for x in value)


def _check_tiling(file: WeightFile, spans: Mapping[str, tuple[int, int]], start: int) -> None:
    """The byte ranges must follow one another, from the header's end to the file's."""
    end = 0
    for name, (begin, after) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != end:
            fault = "overlaps the tensor before it" if begin < end else "leaves a hole before it"
            raise CheckpointError(f"{file.path}: {name!r} at byte {begin:,} {fault} (at {end:,})")
        end = after
    if start + end != file.size:
        raise CheckpointError(
            f"{file.path} has {file.size:,} bytes and its header describes {start + end:,}; "
            "it was cut short or appended to; fetch it again"
        )
