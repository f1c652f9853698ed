"""The notebooks of the examples hold the whole example."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("gallery", "gallery_latents", "gallery_objectives", "mnist")
NAMES = [
    name
    for page in PAGES
    for name in re.findall(
        r"^\.\. notebook:: (\w+)$", (ROOT / f"docs/{page}.rst").read_text(), re.M
    )
]


@pytest.fixture
def notebooks(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(ROOT / "docs" / "_extensions")
    import notebooks

    return notebooks


def test_every_example_of_the_gallery_has_a_notebook():
    for page in PAGES:
        text = (ROOT / f"docs/{page}.rst").read_text()
        commands = set(re.findall(r"^   python examples/(\w+)\.py", text, re.M))
        assert commands == set(re.findall(r"^\.\. notebook:: (\w+)$", text, re.M))


@pytest.mark.parametrize("name", NAMES)
def test_notebook_has_the_code_of_the_script(name, notebooks):
    cells = ["".join(c["source"]) for c in notebooks.notebook(name)["cells"]]
    written = [re.match(r"%%writefile (\w+)\.py\n", c)[1] for c in cells if c.startswith("%%w")]
    code = [c for c in cells[1:-2] if not c.startswith("%")]
    body = ast.parse((ROOT / f"examples/{name}.py").read_text()).body[1:-1]
    assert ast.unparse(ast.parse("\n".join(code))) == ast.unparse(ast.Module(body, []))
    local = {node.module for node in body if isinstance(node, ast.ImportFrom)}
    local = {module for module in local if (ROOT / f"examples/{module}.py").exists()}
    assert local <= set(written)
