"""Control vectors: directions of the residual stream in a GGUF file that llama.cpp adds.

llama.cpp's Phi-2 (`src/models/phi2.cpp`) calls `build_cvec(cur, il)` on the sum of a block's input,
attention and MLP, just before that is named `l_out`: on `resid_post.<il>`. Its loader
(`common_control_vector_load`) puts `direction.N` at place N - 1 of a list in which
`llama_adapter_cvec::apply` finds block `il` at place il - 1. So `direction.N` is added to
`resid_post.N`, and nothing can be added to the embeddings or to `resid_post.0`.
"""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiscope.errors import MissingExtraError, NonFiniteError
from phiscope.store.disk import Disk
from phiscope.store.tensor_file import write_whole

_COLUMN = re.compile(r"(?P<name>[a-z_]+)(\.(?P<layer>\d+))?(\.(?P<reducer>[a-z_]+))?")
_OUT_OF_REACH = ("embeddings", "final_norm")


def export_control_vector(
    directions: Mapping[str, Any],
    out: Path,
    *,
    model_hint: str = "phi2",
    disk: Disk | None = None,
) -> list[str]:
    """Write directions (hidden,) by point or column, `resid_post.16` or `resid_post.16.mean`.

    Returns the names that were left out because llama.cpp cannot add there: embeddings,
    `resid_post.0` and `final_norm`. Raises `ValueError` for points beside the stream, two
    directions for one block, and when nothing is left.
    """
    blocks = _find_blocks(directions)
    left_out = [name for name in directions if name not in blocks.values()]
    if not blocks:
        raise ValueError(
            f"llama.cpp adds directions to resid_post.1 and later blocks; there are only"
            f" {', '.join(left_out) or 'none'}"
        )
    vectors = {block: _read_vector(name, directions[name]) for block, name in blocks.items()}
    widths = {len(vector) for vector in vectors.values()}
    if len(widths) > 1:
        raise ValueError(f"directions of one model have one width, got {sorted(widths)}")
    data = _make_gguf(vectors, model_hint)
    with write_whole(out, disk) as write:
        write(data)
    return left_out


def _find_blocks(names: Mapping[str, Any]) -> dict[int, str]:
    """The blocks from 1 on, ascending, and the name that each one's output has."""
    blocks: dict[int, str] = {}
    for name in names:
        block = _find_block(name)
        if block is None or block < 1:
            continue
        if block in blocks:
            raise ValueError(
                f"{blocks[block]} and {name} both lie after block {block}; give one of them"
            )
        blocks[block] = name
    return dict(sorted(blocks.items()))


def _find_block(name: str) -> int | None:
    match = _COLUMN.fullmatch(name)
    point, layer = (match["name"], match["layer"]) if match else (name, None)
    if point in _OUT_OF_REACH:
        return None
    if point not in ("resid_post", "resid_pre") or layer is None:
        raise ValueError(
            f"{name} is not of the residual stream, to which a control vector is added;"
            f" choose among resid_post.L"
        )
    return int(layer) - (point == "resid_pre")


def _read_vector(name: str, direction: Any) -> NDArray[np.float32]:
    vector = np.asarray(direction, dtype=np.float32)
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"the direction of {name} must be (hidden,), got {vector.shape}")
    if not np.isfinite(vector).all():
        raise NonFiniteError(f"the direction of {name} has a NaN or an infinity")
    return vector


def _make_gguf(vectors: Mapping[int, NDArray[np.float32]], model_hint: str) -> bytes:
    """The file's bytes, with the keys that repeng and llama.cpp's cvector-generator write."""
    try:
        from gguf import GGUFWriter
    except ModuleNotFoundError as error:
        raise MissingExtraError("gguf") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "directions.gguf"
        writer = GGUFWriter(path, "controlvector")
        writer.add_string("controlvector.model_hint", model_hint)
        writer.add_uint32("controlvector.layer_count", len(vectors))
        for block, vector in vectors.items():
            writer.add_tensor(f"direction.{block}", vector)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()
