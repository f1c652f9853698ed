"""Write ``llms.txt``: the whole surface of the library in one file, for coding assistants."""

import importlib
import inspect
import re
from pathlib import Path

import tinyvae

README = Path(__file__).parents[2] / "README.md"
API = Path(__file__).parents[1] / "api.rst"


def surface():
    """Return the text of the file."""
    example = re.search(r"```python\n.*?```", README.read_text(), re.DOTALL)[0]
    lines = ["# tinyvae", "", inspect.getdoc(tinyvae), "", example, ""]
    lines += ["Imported from tinyvae itself: " + ", ".join(sorted(names(tinyvae))), ""]
    for name in re.findall(r"^   (tinyvae\.\w+)$", API.read_text(), re.MULTILINE):
        module = importlib.import_module(name)
        lines += [f"## {name}", "", summary(module), ""]
        lines += [entry(name, value) for name, value in names(module).items()] + [""]
    return "\n".join(lines)


def names(module):
    """Return the public classes and functions of a module."""
    return {
        name: value
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith("tinyvae")
        and not name.startswith("_")
    }


def entry(name, value):
    """Return a line with the signature and the summary, and a line for each public method."""
    lines = [f"- {name}{signature(value)}: {summary(value)}"]
    if inspect.isclass(value):
        methods = {k: v for k, v in vars(value).items() if inspect.isfunction(v) and k[0] != "_"}
        lines += [f"  - .{k}{signature(v)}: {summary(v)}" for k, v in methods.items()]
    return "\n".join(lines)


def signature(value):
    try:
        return re.sub(r"tinyvae\.[\w.]*\.|torch\.", "", str(inspect.signature(value)))
    except ValueError:  # an exception
        return ""


def summary(value):
    return (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")


def write(app, error):
    if error is None:
        Path(app.outdir, "llms.txt").write_text(surface(), "utf-8")


def setup(app):
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}
