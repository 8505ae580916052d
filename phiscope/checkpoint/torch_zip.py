"""`pytorch_model.bin`: where its tensors lie, told without running what a pickle may ask for.

A file of this kind is a zip archive of one pickle and one plain entry per storage. The pickle is
read by `torch.load(weights_only=True)` with fake tensors, so no storage is read or allocated
there; the places it names are then checked against the archive's own directory.
"""

import pickle
import zipfile
from collections.abc import Mapping

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from phiscope.checkpoint.stored import MAX_HEADER_BYTES, StoredTensor, WeightFile
from phiscope.errors import CheckpointError, UnsupportedError

_LOCAL_HEADER_BYTES = 30
_RESAVE = "convert it to safetensors on a machine where you trust it"


def read_torch_zip(file: WeightFile) -> dict[str, StoredTensor]:
    """Where each tensor of a `.bin` file lies; its pickle may hold nothing but named tensors."""
    storages = _find_storages(file)
    state = _read_state(file)
    return {name: _locate(file, name, state[name], storages) for name in state}


def _find_storages(file: WeightFile) -> dict[int, int]:
    """Bytes of each storage by its place in the file, after every check made before unpickling."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            entries = archive.infolist()
            byte_order = [x for x in entries if x.filename.endswith("/byteorder")]
            orders = {archive.read(x) for x in byte_order if x.file_size < 16}
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{file.path} is not the zip archive that torch writes (older formats are pickles "
            f"that cannot be opened safely, a cut file must be fetched again): {error}"
        ) from error
    _check_entries(file, entries)
    if orders - {b"little"}:
        raise UnsupportedError(f"{file.path} holds big-endian weights; {_RESAVE}")
    places = [x for x in entries if "/data/" in x.filename]
    return {_data_offset(file, x): x.file_size for x in places}


def _check_entries(file: WeightFile, entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise CheckpointError(f"{file.path} is a TorchScript archive, which holds code: refused")
    pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
    if len(pickles) != 1 or not pickles[0].filename.endswith("/data.pkl"):
        found = [entry.filename for entry in pickles]
        raise CheckpointError(f"{file.path} must hold one data.pkl, got {found}")
    if pickles[0].file_size > MAX_HEADER_BYTES:
        raise CheckpointError(f"{file.path} holds a pickle of {pickles[0].file_size:,} bytes")
    if len(set(names)) != len(names):
        raise CheckpointError(f"{file.path} holds an entry twice")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{file.path} is compressed, which torch never does; {_RESAVE}")


def _data_offset(file: WeightFile, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: after its local header, its name and its padding."""
    if entry.header_offset + _LOCAL_HEADER_BYTES > file.size:
        raise CheckpointError(f"{file.path}: the entry {entry.filename!r} lies beyond its end")
    header = file.read(entry.header_offset, _LOCAL_HEADER_BYTES, f"the entry {entry.filename!r}")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    begin = entry.header_offset + _LOCAL_HEADER_BYTES + lengths
    if begin + entry.file_size > file.size:
        raise CheckpointError(f"{file.path}: the entry {entry.filename!r} lies beyond its end")
    return begin


def _read_state(file: WeightFile) -> Mapping[str, torch.Tensor]:
    try:
        with FakeTensorMode():
            state = torch.load(file.path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file.path} asks for more than plain tensors when it is opened, which could run "
            f"code: refused ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # whatever a damaged pickle makes of its reader
        raise CheckpointError(f"{file.path} is damaged: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{file.path} must hold a mapping of names to tensors")
    return state


def _locate(
    file: WeightFile, name: str, tensor: object, storages: Mapping[int, int]
) -> StoredTensor:
    if not isinstance(tensor, torch.Tensor):
        raise CheckpointError(f"{file.path}: {name!r} is a {type(tensor).__name__}, not a tensor")
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise UnsupportedError(f"{file.path}: {name!r} is a sparse or quantized tensor; {_RESAVE}")
    storage = tensor.untyped_storage()
    start = storage._checkpoint_offset
    if start is None or storages.get(start) != storage.nbytes():
        raise CheckpointError(f"{file.path}: {name!r} does not match any storage of the archive")
    if not tensor.is_contiguous():
        raise UnsupportedError(f"{file.path}: {name!r} is stored as a strided view; {_RESAVE}")
    begin = int(tensor.storage_offset()) * tensor.dtype.itemsize
    place = StoredTensor(name, tensor.dtype, tuple(tensor.shape), file, start + begin)
    if begin + place.num_bytes > storage.nbytes():
        raise CheckpointError(f"{file.path}: {name!r} reaches beyond its storage")
    return place
