"""Directive ``executed``: code that runs when the page is built, with its output below.

Blocks of a page run one after the other in one namespace. Printed text and the value of the last
line become the output: a figure is shown as an image, anything else as text. An exception ends the
build.
"""

import ast
import contextlib
import io
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

FIGURES = "_build/figures"  # below the source folder, not in the repository


class Executed(SphinxDirective):
    has_content = True

    def run(self):
        page = self.env.temp_data.setdefault(
            "executed", {"names": {"__name__": "page"}, "count": 0}
        )
        code = "\n".join(self.content)
        block = nodes.literal_block(code, code, language="python")
        value, printed = run_code(code, page["names"])
        if hasattr(value, "savefig"):
            page["count"] += 1
            return [block, self.image(value, page["count"])]
        text = printed if value is None else f"{printed}{value}"
        if not text.strip():
            return [block]
        return [
            block,
            nodes.literal_block(text, text.rstrip(), language="text", classes=["output"]),
        ]

    def image(self, figure, number):
        name = f"{FIGURES}/{self.env.docname}-{number}.png"
        path = Path(self.env.srcdir, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100, metadata={"Software": None})
        return nodes.image(uri=f"/{name}", alt=f"figure {number} of this page", width="80%")


def run_code(code, names):
    """Run the code. Return the value of the last line, if it is an expression, and the output."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    output, progress = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(progress):
        exec(compile(tree, "<page>", "exec"), names)
        value = last and eval(compile(ast.Expression(last.value), "<page>", "eval"), names)
    return value, output.getvalue()


def setup(app):
    app.add_directive("executed", Executed)
    return {"parallel_read_safe": True}
