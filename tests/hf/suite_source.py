"""transformers' own common model tests, from the source distribution that the set-up fetches.

The distribution lacks two of the modules that they import: the exporters' and generation's tests.
Empty mixins stand in for those; what they would test is tested in `test_generation.py` and
`test_compilation.py`.
"""

import importlib
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import transformers

PACKAGE = "transformers_suite"
FOLDER = Path(sys.prefix) / "share/transformers-tests" / f"transformers-{transformers.__version__}"
_ABSENT = {
    "exporters.test_export": "ExportTesterMixin",
    "generation.test_utils": "GenerationTesterMixin",
}


def load_suite() -> ModuleType:
    """The module `test_modeling_common`."""
    package = ModuleType(PACKAGE)
    package.__path__ = [str(FOLDER / "tests")]
    sys.modules[PACKAGE] = package
    for name, mixin in _ABSENT.items():
        parent, _, _ = name.rpartition(".")
        for part in (parent, name):
            sys.modules.setdefault(f"{PACKAGE}.{part}", ModuleType(f"{PACKAGE}.{part}"))
        setattr(sys.modules[f"{PACKAGE}.{name}"], mixin, type(mixin, (), {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
        return importlib.import_module(f"{PACKAGE}.test_modeling_common")
