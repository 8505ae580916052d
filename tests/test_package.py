import ast
import subprocess
import sys
from pathlib import Path

import pytest

import phiscope

PACKAGE = Path(phiscope.__file__).parent


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_importing_phiscope_imports_neither_torch_nor_numpy():
    heavy = "{'torch', 'numpy', 'tokenizers', 'huggingface_hub'}"
    assert run_python(f"import phiscope, sys; print({heavy} & set(sys.modules))") == "set()\n"


def test_each_public_name_is_there_once():
    assert len(phiscope.__all__) == len(set(phiscope.__all__))
    for name in phiscope.__all__:
        assert getattr(phiscope, name) is not None


def test_public_names_are_those_that_type_checkers_see():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (alias.name, node.module.removeprefix("phiscope."))
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == set(phiscope._HOME_OF.items())
    assert {name for name, _ in seen} == set(phiscope.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = phiscope.nothing


def test_dir_lists_names_that_are_not_imported_yet():
    assert "['load']" in run_python(
        "import phiscope; print([name for name in dir(phiscope) if name == 'load'])"
    )


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_no_module_is_a_drawer_for_everything():
    vague = {"utils", "helpers", "common", "misc", "base", "core", "manager"}
    assert not vague & {path.stem for path in PACKAGE.rglob("*")}


def test_no_file_is_longer_than_four_hundred_lines():
    lengths = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert [str(path) for path, length in lengths.items() if length > 400] == []


def test_imports_are_absolute():
    for path in PACKAGE.rglob("*.py"):
        imports = [
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)
        ]
        assert all(node.level == 0 for node in imports), path


@pytest.mark.parametrize(("name", "parameters"), [("nano", 3e5), ("tiny", 5.3e6)])
def test_an_embedded_model_comes_with_the_package_and_writes_text(name, parameters):
    phi = phiscope.load(name, mode="fp32-cpu")
    assert phi.config.num_parameters == pytest.approx(parameters, rel=0.05)
    assert phi.generate("def f(x):", max_new_tokens=8).token_ids


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_an_embedded_model_takes_eleven_megabytes_at_most(name):
    files = list((PACKAGE / "models" / name).iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in files
    }
    assert sum(path.stat().st_size for path in files) <= 11e6
