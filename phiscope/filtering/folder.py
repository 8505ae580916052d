"""The folder of a filter: `filter.json`, and the head with its standards as safetensors.

A forest is kept by skops, which rebuilds objects of trusted types only and runs no pickle. What it
cannot vouch for are the node numbers of a tree, which scikit-learn follows unchecked, so they are
checked here before a tree is used.
"""

import hashlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np

from phiscope.checkpoint.safetensors_format import read_header
from phiscope.checkpoint.stored import WeightFile
from phiscope.errors import CheckpointError, FilterError, MissingExtraError
from phiscope.filtering.features import read_features
from phiscope.filtering.filter import Filter, Standards
from phiscope.filtering.heads import Array, ForestHead, Head, Kind, LinearHead, MlpHead, build_head
from phiscope.filtering.labels import read_meaning
from phiscope.filtering.origin import make_origin
from phiscope.filtering.report import Curve, read_report
from phiscope.store import Disk
from phiscope.store.tensor_file import TensorEntry, write_tensor_file
from phiscope.strict import read_json_object

FILTER_NAME = "filter.json"
TENSORS_NAME = "head.safetensors"
FOREST_NAME = "forest.skops"
TRUSTED = ["sklearn.tree._tree.Tree"]
"""Beside scikit-learn's own Python classes, which skops trusts by itself."""
_FORMAT = {"format": "phiscope-filter", "version": 1}
_MAX_BYTES = 2**24
_STANDARDS = ("mean", "scale")


def write_filter(folder: Path, filter: Filter) -> None:
    """Write a folder that is there whole or not at all; `FilterError` for a name that is taken."""
    if folder.exists():
        raise FilterError(f"{folder} is there; give another folder")
    disk = Disk()
    with _new_folder(folder, disk) as temporary:
        tensors = {"mean": filter.standards.mean, "scale": filter.standards.scale}
        if isinstance(filter.head, ForestHead):
            disk.replace(temporary / FOREST_NAME, _dump_forest(filter.head))
        elif isinstance(filter.head, LinearHead | MlpHead):
            tensors |= filter.head.tensors()
        entries = {name: TensorEntry("F64", t.shape, [t]) for name, t in tensors.items()}
        write_tensor_file(temporary / TENSORS_NAME, entries, {"format": "pt"}, disk)
        digests = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
        disk.replace_json(temporary / FILTER_NAME, _describe(filter, digests))


def read_filter(folder: Path) -> Filter:
    """Read what `write_filter` wrote; `FilterError` names the file that is not sound."""
    path = folder / FILTER_NAME
    if not path.is_file():
        raise FilterError(f"{folder} is no filter, as it has no {FILTER_NAME}")
    value = read_json_object(path, _MAX_BYTES, FilterError)
    if {name: value.get(name) for name in _FORMAT} != _FORMAT:
        raise FilterError(f"{path} is no filter that this version of phiscope can read")
    try:
        return _build(folder, value)
    except (FilterError, MissingExtraError):
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FilterError(f"{path} is damaged: {error!r}; fit the filter again") from error


def _describe(filter: Filter, digests: Mapping[str, str]) -> dict[str, Any]:
    curve = filter.curve
    return {
        **_FORMAT,
        "head": filter.head.kind,
        "features": filter.features.to_json(),
        "states": filter.origin.to_json(),
        "labels": filter.meaning.to_json(),
        "threshold": filter.threshold,
        "curve": None if curve is None else {"slope": curve.slope, "offset": curve.offset},
        "report": filter.report.to_json(),
        "files": dict(digests),
    }


def _build(folder: Path, value: Mapping[str, Any]) -> Filter:
    kind = value["head"]
    _check_files(folder, kind, value["files"])
    features = read_features(value["features"])
    tensors = _read_tensors(folder / TENSORS_NAME)
    standards = _build_standards(tensors, features.width)
    rest = {name: tensor for name, tensor in tensors.items() if name not in _STANDARDS}
    if kind == "forest":
        head: Head = _load_forest(folder / FOREST_NAME, features.width)
    else:
        head = _build_head(folder / TENSORS_NAME, kind, rest, features.width)
    return Filter(
        features=features,
        origin=make_origin(value["states"]),
        meaning=read_meaning(value["labels"]),
        standards=standards,
        head=head,
        threshold=float(value["threshold"]),
        curve=None if value["curve"] is None else _read_curve(value["curve"]),
        report=read_report(value["report"]),
    )


def _check_files(folder: Path, kind: str, digests: Mapping[str, str]) -> None:
    """Raise unless the files of such a head are there as they were written."""
    if kind not in get_args(Kind):
        raise ValueError(f"no head {kind!r}")
    wanted = {TENSORS_NAME, FOREST_NAME} if kind == "forest" else {TENSORS_NAME}
    if digests.keys() != wanted:
        raise ValueError(f"a {kind} has the files {sorted(wanted)}")
    for name, digest in digests.items():
        if _digest(folder / name) != digest:
            raise FilterError(f"{folder / name} is not what was written; fit the filter again")


def _read_curve(value: Mapping[str, Any]) -> Curve:
    return Curve(slope=float(value["slope"]), offset=float(value["offset"]))


def _build_standards(tensors: Mapping[str, Array], width: int) -> Standards:
    standards = Standards(mean=tensors["mean"], scale=tensors["scale"])
    for values in (standards.mean, standards.scale):
        if values.shape != (width,) or not np.isfinite(values).all():
            raise ValueError(f"mean and scale are {width} finite numbers each")
    if not (standards.scale > 0).all():
        raise ValueError("the scale of a feature is not above 0")
    return standards


def _build_head(path: Path, kind: str, tensors: Mapping[str, Array], width: int) -> Head:
    try:
        return build_head(kind, tensors, width)
    except ValueError as error:
        raise FilterError(f"{path} holds no {kind}: {error}; fit the filter again") from error


def _read_tensors(path: Path) -> dict[str, Array]:
    try:
        with WeightFile(path) as file:
            tensors = {name: stored.read() for name, stored in read_header(file).items()}
    except CheckpointError as error:
        raise FilterError(f"{error}; fit the filter again") from error
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def _dump_forest(head: ForestHead) -> bytes:
    skops_io = _import_skops()
    data: bytes = skops_io.dumps(head.forest)
    return data


def _load_forest(path: Path, width: int) -> ForestHead:
    """A forest of trusted types whose trees lead from node to node and end."""
    skops_io = _import_skops()
    from sklearn.ensemble import RandomForestClassifier

    try:
        untrusted = sorted(set(skops_io.get_untrusted_types(file=path)) - set(TRUSTED))
        if untrusted:
            raise FilterError(
                f"{path} holds objects of {', '.join(untrusted[:5])}, which no forest has and which"
                " could run anything; use a filter that you fitted"
            )
        forest = skops_io.load(path, trusted=TRUSTED)
    except FilterError:
        raise
    except Exception as error:  # skops lets through whatever a damaged archive makes it stumble on
        raise FilterError(f"{path} is damaged: {error!r}; fit the filter again") from error
    if type(forest) is not RandomForestClassifier:
        raise FilterError(f"{path} holds a {type(forest).__name__}, no forest; fit it again")
    if not _is_sound(forest, width):
        raise FilterError(f"{path} holds a damaged forest; fit the filter again")
    return ForestHead(forest=forest)


def _is_sound(forest: Any, width: int) -> bool:
    """Whether it is a forest of two classes, and each tree one of that width."""
    from sklearn.tree import DecisionTreeClassifier

    classes = [bool(name) for name in forest.classes_]
    if forest.n_features_in_ != width or classes != [False, True] or forest.n_outputs_ != 1:
        return False
    trees = forest.estimators_
    return bool(trees) and all(
        type(tree) is DecisionTreeClassifier and _is_sound_tree(tree.tree_, width) for tree in trees
    )


def _is_sound_tree(tree: Any, width: int) -> bool:
    """Whether no step can lead outside the tree or go round in it."""
    if not 1 <= tree.node_count <= tree.capacity or tree.n_features != width:
        return False
    if tree.value.shape != (tree.node_count, 1, 2):
        return False
    numbers = np.arange(tree.node_count)
    left, right, feature = tree.children_left, tree.children_right, tree.feature
    inner = left != -1
    leads_on = (left > numbers) & (right > numbers) & (np.maximum(left, right) < len(numbers))
    in_range = (feature >= 0) & (feature < width)
    return bool(np.all(~inner | (leads_on & in_range)))


def _import_skops() -> Any:
    try:
        import sklearn.ensemble  # noqa: F401
        from skops import io
    except ModuleNotFoundError as error:
        raise MissingExtraError("filter") from error
    return io


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FilterError(f"cannot read {path}: {error.strerror}; fit the filter again") from error


@contextmanager
def _new_folder(folder: Path, disk: Disk) -> Iterator[Path]:
    """A folder beside the one that is wanted, which takes its name when all is in it."""
    disk.make_folder(folder.absolute().parent)
    temporary = folder.absolute().with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        disk.make_folder(temporary)
        yield temporary
        disk.sync_folder(temporary)
        disk.rename(temporary, folder.absolute())
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    disk.sync_folder(folder.absolute().parent)
