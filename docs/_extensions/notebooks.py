"""Directive ``notebook``: downloads of an example, as a notebook and as a script.

The notebook is made from the script when the page is built: a cell for each function, and one that
runs it and shows its figures. Modules of ``examples/`` that it imports are written by cells.
"""

import ast
import json
import re
from itertools import pairwise
from pathlib import Path

from sphinx.util.docutils import SphinxDirective

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = "_build/notebooks"  # below the source folder, not in the repository
INSTALL = "%pip install -q 'tinyvae[examples,flows,sklearn]'"
RUN = """import sys

sys.argv = ["{name}.py", "--output", "figures"]
main()"""
SHOW = """from pathlib import Path

from IPython.display import Image, display

for path in sorted(Path("figures").glob("*.png")):
    display(Image(filename=path, width=800))"""


class Notebook(SphinxDirective):
    required_arguments = 1

    def run(self):
        (name,) = self.arguments
        path = Path(self.env.srcdir, NOTEBOOKS, f"{name}.ipynb")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(notebook(name), indent=1))
        self.env.note_dependency(EXAMPLES / f"{name}.py")
        links = (
            f"Download: :download:`{name}.ipynb </{NOTEBOOKS}/{name}.ipynb>`, "
            f":download:`{name}.py </../examples/{name}.py>`"
        )
        return self.parse_text_to_nodes(links)


def notebook(name):
    """Return the notebook of ``examples/name.py``."""
    source = (EXAMPLES / f"{name}.py").read_text()
    docstring, *cells = sections(source)
    modules = [f"%%writefile {m}.py\n{(EXAMPLES / f'{m}.py').read_text()}" for m in helpers(source)]
    code = [INSTALL, *modules, *cells, RUN.format(name=name), SHOW]
    text = ast.literal_eval(docstring)
    title, _, rest = text.partition("\n\n")
    described = [cell("markdown", f"# {title}\n\n{rest}")]
    return {
        "cells": described + [cell("code", c, outputs=[], execution_count=None) for c in code],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }


def cell(kind, text, **options):
    return {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True), **options}


def sections(source):
    """Return the docstring, what comes before the first function, and each function or class."""
    *body, guard = ast.parse(source).body
    assert ast.unparse(guard.test) == "__name__ == '__main__'"
    lines = source.splitlines(keepends=True)
    blocks = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    firsts = [min([b.lineno, *(d.lineno for d in b.decorator_list)]) for b in blocks]
    edges = [0, body[0].end_lineno, *(first - 1 for first in firsts), guard.lineno - 1]
    return ["".join(lines[a:b]).strip() for a, b in pairwise(edges)]


def helpers(source):
    """Return the modules of ``examples/`` that a script imports, those that they import first."""
    names = re.findall(r"^from (\w+) import", source, flags=re.MULTILINE)
    direct = [name for name in names if (EXAMPLES / f"{name}.py").exists()]
    inner = [m for name in direct for m in helpers((EXAMPLES / f"{name}.py").read_text())]
    return list(dict.fromkeys([*inner, *direct]))


def setup(app):
    app.add_directive("notebook", Notebook)
    return {"parallel_read_safe": True}
