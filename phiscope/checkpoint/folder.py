"""A checkpoint folder, open and checked.

It is sound when its config, its layout and every tensor's name and shape agree; that is
established from headers alone, before anything is allocated.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from phiscope.checkpoint.layouts import (
    Layout,
    check_shapes,
    detect_layout,
    find_pieces,
    modernise,
    our_shapes,
    stored_shapes,
)
from phiscope.checkpoint.stored import StoredTensor, join_tensors
from phiscope.checkpoint.weights import Span, Weights, read_spans, read_spans_alone
from phiscope.config import PhiConfig, read_config
from phiscope.errors import CheckpointError, UnsupportedError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class OpenFolder:
    """A folder whose weight files are open until its context ends."""

    weights: Weights
    tensors: Mapping[str, StoredTensor]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.weights.close()

    @property
    def dtypes(self) -> dict[str, int]:
        """How many tensors are stored in each dtype, the commonest first."""
        counts = Counter(dtype_name(tensor.dtype) for tensor in self.tensors.values())
        return dict(counts.most_common())


class Checkpoint(OpenFolder):
    """An open checkpoint folder whose headers were checked; a context manager.

    `tensors` has the stored weights by today's names of its `layout`; `shapes` ours by our names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.config = read_config(self.folder)
        refuse_integers(self.folder, self.config.quantization)
        self.weights = Weights(self.folder)
        try:
            self._read_headers()
        except BaseException:
            self.weights.close()
            raise

    def spans(self, targets: Mapping[str, Tensor], *, are_read: bool = False) -> Iterator[Span]:
        """What to read to fill our tensors, given by our names, or to check if `are_read`."""
        for name, target in targets.items():
            for span in self._spans_of(name, range(len(target)), target):
                yield replace(span, is_read=are_read)

    def map(self, names: Iterable[str], dtype: torch.dtype) -> dict[str, Tensor]:
        """Those of our tensors that lie in a file in one piece and in this dtype, mapped."""
        wholes = {name: self._find_whole(name) for name in names}
        fitting = {
            name: whole
            for name, whole in wholes.items()
            if whole is not None and whole.dtype == dtype and whole.file.can_be_mapped
        }
        mappings = {file: file.map() for file in {whole.file for whole in fitting.values()}}
        return {name: whole.view(mappings[whole.file]) for name, whole in fitting.items()}

    def _find_whole(self, name: str) -> StoredTensor | None:
        """One of our tensors where it lies in a file in one piece."""
        if not self._is_whole(name):
            return None
        stored = [self.tensors[piece.name] for piece in self._pieces[name]]
        return join_tensors(name, stored, self.shapes[name])

    def _is_whole(self, name: str) -> bool:
        """Whether one of our tensors is made of whole stored ones, in their order."""
        end = 0
        for piece in self._pieces[name]:
            rows = self.tensors[piece.name].shape[0]
            if (piece.start, piece.target, piece.rows) != (0, end, rows):
                return False
            end += piece.rows
        return True

    def fetch(self, name: str, dtype: torch.dtype) -> Tensor:
        """One of our tensors."""
        return self.fetch_rows(name, range(self.shapes[name][0]), dtype)

    def fetch_rows(self, name: str, rows: range, dtype: torch.dtype) -> Tensor:
        """Some rows, one after the other, of one of our tensors."""
        tensor = torch.empty((len(rows), *self.shapes[name][1:]), dtype=dtype)
        read_spans(self._spans_of(name, rows, tensor))
        return tensor

    def read_rows(self, name: str, rows: range) -> tuple[Tensor, bool]:
        """Some rows as they are stored, read by this thread alone, and whether all are finite."""
        tensor = torch.empty((len(rows), *self.shapes[name][1:]), dtype=self.dtype_of(name))
        return tensor, not read_spans_alone(self._spans_of(name, rows, tensor))

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype that holds one of our tensors exactly as it is stored."""
        dtype, *others = {self.tensors[piece.name].dtype for piece in self._pieces[name]}
        for other in others:
            dtype = torch.promote_types(dtype, other)
        return dtype

    def count_bytes(self, name: str) -> int:
        """What one of our tensors takes in the files."""
        parts = ((self.tensors[piece.name], piece.rows) for piece in self._pieces[name])
        return sum(tensor.row_bytes * rows for tensor, rows in parts)

    def _spans_of(self, name: str, rows: range, target: Tensor) -> Iterator[Span]:
        for piece in self._pieces[name]:
            first = max(piece.target, rows.start)
            end = min(piece.target + piece.rows, rows.stop)
            if first < end:
                out = target[first - rows.start : end - rows.start]
                start = piece.start + first - piece.target
                yield Span(self.tensors[piece.name], start, out, name)

    def _read_headers(self) -> None:
        names = modernise(self.weights.tensors)
        self.layout = detect_layout(names)
        self.tensors: dict[str, StoredTensor] = {
            name: self.weights.tensors[stored] for name, stored in names.items()
        }
        self.config = _fit_vocabulary(self.config, self.layout, self.tensors)
        found = {name: tensor.shape for name, tensor in self.tensors.items()}
        check_shapes(found, stored_shapes(self.config, self.layout), where=str(self.folder))
        self._check_dtypes()
        self.shapes = our_shapes(self.config)
        self._pieces = find_pieces(self.config, self.layout)

    def _check_dtypes(self) -> None:
        wrong = [name for name, tensor in self.tensors.items() if tensor.dtype not in FLOATS]
        if wrong:
            first = self.tensors[wrong[0]]
            raise CheckpointError(
                f"{len(wrong)} tensors of {self.folder} are not of a dtype for weights, the first "
                f"{wrong[0]!r} of {dtype_name(first.dtype)} in {first.file.path.name}; "
                "take the float checkpoint"
            )


def find_dtype(folder: Path) -> str | None:
    """The dtype of all weights of a folder; None if they are of several."""
    with Checkpoint(folder) as checkpoint:
        dtype, *others = checkpoint.dtypes
    return None if others else dtype


def refuse_integers(folder: Path, quantization: str | None) -> None:
    """Raise `UnsupportedError` for a folder whose weights are stored as integers."""
    if quantization is not None:
        raise UnsupportedError(
            f"{folder} holds weights rounded to {quantization}, which phiscope.load opens in mode "
            f"'{quantization}-cpu'; for anything else take the float checkpoint they came from"
        )


def dtype_name(dtype: torch.dtype) -> str:
    """Its name without the module: `float16`."""
    return str(dtype).removeprefix("torch.")


def _fit_vocabulary(
    config: PhiConfig, layout: Layout, tensors: Mapping[str, StoredTensor]
) -> PhiConfig:
    """Take the stored number of rows where the config only rounds it up.

    Microsoft's code pads `vocab_size` to a multiple when it reads its own configs, so the config of
    a resized fine-tune may stand for the padded number of rows or for the written one.
    """
    embed = find_pieces(config, layout, layers=0)["model.embed_tokens.weight"][0].name
    multiple = config.extra.get("pad_vocab_size_multiple")
    if layout not in ("A", "B") or type(multiple) is not int or multiple < 1:
        return config
    if embed not in tensors or not tensors[embed].shape:
        return config
    rows = tensors[embed].shape[0]
    padded = -(-rows // multiple) * multiple
    return replace(config, vocab_size=rows) if padded == config.vocab_size else config
