"""The weight files of a checkpoint folder: opened together, checked, and read into tensors.

Bytes go straight into the destination where dtype and device agree, else through a small staging
buffer per thread; every byte is touched once, so loading costs the model's memory and no more.
"""

import itertools
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from phiscope.checkpoint.safetensors_format import read_header, write_json, write_safetensors
from phiscope.checkpoint.stored import (
    CHUNK_BYTES,
    MAX_HEADER_BYTES,
    StoredTensor,
    WeightFile,
    view_bytes,
)
from phiscope.checkpoint.torch_zip import read_torch_zip
from phiscope.errors import CheckpointError, NonFiniteError
from phiscope.finite import DTYPES as FINITE_DTYPES
from phiscope.finite import all_finite
from phiscope.strict import read_json_object

MAX_THREADS = 4
MAPPED_BYTES = 64 * 2**20
"""Of a mapped file that are looked at at a time."""

CANDIDATES = (  # in transformers' order
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


class Weights:
    """Every tensor stored in a folder, by its stored name; a context manager that closes the files.

    Raises `CheckpointError` for files that are missing, damaged, or at odds with their index.
    """

    def __init__(self, folder: Path, names: Sequence[str] = CANDIDATES) -> None:
        """`names` are those of the files that may be there, of which the first is read."""
        self.folder = Path(folder)
        self.index, names = _find_files(self.folder, names)
        self.tensors: dict[str, StoredTensor] = {}
        with ExitStack() as stack:
            self.files = [stack.enter_context(WeightFile(self.folder / name)) for name in names]
            for file in self.files:
                self._add(file)
            self._check_index()
            self._stack = stack.pop_all()

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if a file was written to since it was opened."""
        for file in self.files:
            file.check_unchanged()

    def _add(self, file: WeightFile) -> None:
        read = read_header if file.path.suffix == ".safetensors" else read_torch_zip
        for name, tensor in read(file).items():
            if name in self.tensors:
                other = self.tensors[name].file.path.name
                raise CheckpointError(f"{name!r} is in {other} and again in {file.path.name}")
            self.tensors[name] = tensor

    def _check_index(self) -> None:
        if self.index is None:
            return
        found = {name: tensor.file.path.name for name, tensor in self.tensors.items()}
        names = (*self.index, *found)
        wrong = [name for name in names if found.get(name) != self.index.get(name)]
        if wrong:
            first = "; ".join(
                f"{name!r} in {self.index.get(name, 'none')} by the index, "
                f"in {found.get(name, 'none')} in truth"
                for name in dict.fromkeys(wrong[:5])
            )
            raise CheckpointError(f"the index of {self.folder} disagrees with its files: {first}")


@dataclass(frozen=True)
class Span:
    """Rows `start` on of a stored tensor, and the tensor of as many rows that they go into."""

    source: StoredTensor
    start: int
    out: Tensor
    name: str
    """Of the destination, for messages."""
    is_read: bool = False
    """Whether the rows are there, and only to be checked."""


def read_spans(
    spans: Iterable[Span], *, on_bytes: Callable[[int], object] | None = None
) -> set[str]:
    """Fill every span's tensor, converting to its dtype, with several threads.

    Returns the names of the tensors with a NaN or an infinity. `on_bytes` is told, in the calling
    thread, how many bytes were read. Raises `CheckpointError` for a file that ends early and
    `NonFiniteError` for a number the new dtype cannot hold.
    """
    reader = _Reader()
    chunks = [chunk for span in spans for chunk in _split(span)]
    with closing(_read_all(reader, chunks)) as done:
        for num_bytes in done:
            if on_bytes is not None:
                on_bytes(num_bytes)
    return reader.non_finite


def read_spans_alone(spans: Iterable[Span]) -> set[str]:
    """`read_spans` in the calling thread alone, for those who have several of their own."""
    reader = _Reader()
    for span in spans:
        for chunk in _split(span):
            reader.read(chunk)
    return reader.non_finite


def find_non_finite(
    tensors: Iterable[StoredTensor], *, on_bytes: Callable[[int], object] | None = None
) -> list[str]:
    """Names of the floating-point tensors that hold a NaN or an infinity."""
    with ThreadPoolExecutor(num_threads()) as pool:
        floats = [tensor for tensor in tensors if tensor.dtype in FINITE_DTYPES]
        names = []
        for tensor, finite in zip(floats, pool.map(_scan, floats), strict=True):
            names += [] if finite else [tensor.name]
            if on_bytes is not None:
                on_bytes(tensor.num_bytes)
    return names


def convert_values(x: Tensor, dtype: torch.dtype, name: str) -> tuple[Tensor, bool]:
    """The values in another dtype, and whether all are finite.

    Raises `NonFiniteError` naming the tensor where a finite number would become infinite.
    """
    converted = x.to(dtype)
    if all_finite(converted):
        return converted, True
    lost = x.isfinite() & ~converted.isfinite()
    if lost.any():
        largest = x[lost].abs().max().item()
        raise NonFiniteError(
            f"{name!r} holds {largest:.6g}, beyond the range of {dtype}; take bfloat16 or float32"
        )
    return converted, False


def write_weights(
    folder: Path,
    entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterator[Tensor],
    *,
    max_shard_size: int,
) -> None:
    """Write safetensors, in shards with an index if one file would exceed that many bytes.

    The tensors come one at a time, in the entries' order.
    """
    shards = _plan_shards(entries, max_shard_size)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    names = names if len(shards) > 1 else ["model.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        part = {key: entries[key] for key in shard}
        write_safetensors(folder / name, part, itertools.islice(tensors, len(part)))
    if len(shards) > 1:
        files = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(map(_entry_bytes, entries.values()))
        index = {"metadata": {"total_size": total}, "weight_map": files}
        write_json(folder / "model.safetensors.index.json", index)


def num_threads() -> int:
    """Threads that read: memory is full with a few."""
    return min(MAX_THREADS, os.cpu_count() or 1)


class _Reader:
    """Reads chunks, with one staging buffer per thread."""

    def __init__(self) -> None:
        self.non_finite: set[str] = set()
        self._local = threading.local()

    def read(self, chunk: Span) -> int:
        source, out = chunk.source, chunk.out
        offset = source.offset + chunk.start * source.row_bytes
        what = f"tensor {source.name!r}"
        if out.dtype == source.dtype and out.device.type == "cpu":
            if not chunk.is_read:
                source.file.read_into(view_bytes(out), offset, what)
            finite = all_finite(out)
        else:
            staged = self._stage(chunk)
            source.file.read_into(view_bytes(staged), offset, what)
            converted, finite = convert_values(staged, out.dtype, chunk.name)
            out.copy_(converted)
        if not finite:
            self.non_finite.add(chunk.name)
        return out.shape[0] * source.row_bytes

    def _stage(self, chunk: Span) -> Tensor:
        size = chunk.out.shape[0] * chunk.source.row_bytes
        buffer: Tensor | None = getattr(self._local, "buffer", None)
        if buffer is None or buffer.numel() < size:
            pinned = chunk.out.device.type == "cuda"
            buffer = torch.empty(max(size, CHUNK_BYTES), dtype=torch.uint8, pin_memory=pinned)
            self._local.buffer = buffer
        return buffer[:size].view(chunk.source.dtype).view(chunk.out.shape)


def _read_all(reader: _Reader, chunks: Sequence[Span]) -> Generator[int, None, None]:
    """Read all, as far as the caller goes on, and give the bytes of each chunk that is done."""
    if len(chunks) == 1:  # small tensors are fetched one by one, and starting threads takes longer
        yield reader.read(chunks[0])
        return
    with ThreadPoolExecutor(num_threads()) as pool:
        reads = [pool.submit(reader.read, chunk) for chunk in chunks]
        try:
            for read in as_completed(reads):
                yield read.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _split(span: Span) -> Iterator[Span]:
    size = MAPPED_BYTES if span.is_read else CHUNK_BYTES
    rows = max(1, size // max(1, span.source.row_bytes))
    for first in range(0, span.out.shape[0], rows):
        out = span.out[first : first + rows]
        yield replace(span, start=span.start + first, out=out)


def _scan(tensor: StoredTensor) -> bool:
    """Whether every element of a stored tensor is finite."""
    rows = max(1, CHUNK_BYTES // max(1, tensor.row_bytes))
    total = tensor.shape[0] if tensor.shape else 1
    for start in range(0, total, rows):
        shape = (min(rows, total - start), *tensor.shape[1:])
        chunk = torch.empty(shape, dtype=tensor.dtype)
        offset = tensor.offset + start * tensor.row_bytes
        tensor.file.read_into(view_bytes(chunk), offset, f"tensor {tensor.name!r}")
        if not all_finite(chunk):
            return False
    return True


def _plan_shards(
    entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], limit: int
) -> list[list[str]]:
    """Names per file, in order; a tensor above the limit has a file of its own."""
    if limit <= 0:
        raise ValueError(f"max_shard_size must be positive, got {limit}")
    shards: list[list[str]] = [[]]
    size = 0
    for name, entry in entries.items():
        size += _entry_bytes(entry)
        if size > limit and shards[-1]:
            shards.append([])
            size = _entry_bytes(entry)
        shards[-1].append(name)
    return shards


def _entry_bytes(entry: tuple[torch.dtype, tuple[int, ...]]) -> int:
    dtype, shape = entry
    return torch.Size(shape).numel() * dtype.itemsize


def _find_files(
    folder: Path, candidates: Sequence[str]
) -> tuple[Mapping[str, str] | None, list[str]]:
    """The index, if the checkpoint is in shards, and the names of its files."""
    if not folder.is_dir():
        raise CheckpointError(f"no folder {folder}")
    name = next((x for x in candidates if (folder / x).exists()), None)
    if name is None:
        raise CheckpointError(f"no weights in {folder}; looked for {', '.join(candidates)}")
    if not name.endswith(".json"):
        return None, [name]
    index = _read_index(folder / name)
    return index, sorted(set(index.values()))


def _read_index(path: Path) -> Mapping[str, str]:
    index = read_json_object(path, MAX_HEADER_BYTES, CheckpointError).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{path} has no weight_map of tensor names to files")
    suffix = "." + path.name.split(".")[1]
    shards = list(dict.fromkeys(map(str, index.values())))
    unsafe = [x for x in shards if not _is_plain(x) or not x.endswith(suffix)]
    if unsafe:
        raise CheckpointError(
            f"{path} names {unsafe[0]!r}, and a shard must be a {suffix} file beside its index"
        )
    missing = [x for x in shards if not (path.parent / x).exists()]
    if missing:
        raise CheckpointError(f"{path.parent} lacks the shards {', '.join(missing[:5])}")
    return index


def _is_plain(name: str) -> bool:
    """Whether a name stays in its folder."""
    return not set(name) & set("/\\\0") and not name.startswith(".")
