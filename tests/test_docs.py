"""The documentation agrees with the code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_architecture_page_has_the_import_table():
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text())
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
    (table,) = [node.value for node in assignments if node.targets[0].id == "MAY_IMPORT"]
    expected = [
        f"   {name:<14} {', '.join(allowed.split()) or '-'}"
        for name, allowed in ast.literal_eval(table).items()
    ]
    page = (ROOT / "docs" / "architecture.rst").read_text()
    assert page.endswith("\n".join(["", *expected, ""])), "\n".join(["expected", *expected])


def test_api_page_names_every_public_submodule():
    import tinyvae

    page = (ROOT / "docs" / "api.rst").read_text()
    listed = set(re.findall(r"^   tinyvae\.(\w+)$", page, flags=re.MULTILINE))
    packages = {path.parent.name for path in (ROOT / "src" / "tinyvae").glob("*/__init__.py")}
    files = {path.stem for path in (ROOT / "src" / "tinyvae").glob("[!_]*.py")}
    assert listed == packages | files
    assert tinyvae.__doc__


def test_llms_file_has_every_public_name(monkeypatch: pytest.MonkeyPatch):
    import tinyvae

    monkeypatch.syspath_prepend(ROOT / "docs" / "_extensions")
    from llms import names, surface

    text = surface()
    modules = [value for value in vars(tinyvae).values() if hasattr(value, "__path__")]
    listed = [name for module in modules for name in names(module)]
    assert len(listed) > 200
    assert [name for name in listed if f"\n- {name}" not in text] == []
