"""The shape of the repository: directions of imports, public names, versions."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinyvae

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "tinyvae"
SOURCES = sorted(PACKAGE.rglob("*.py"))

MODULES = {path.stem for path in PACKAGE.glob("*.py")}
MODULES |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}

# Every module or package of tinyvae, and what it may import of the others. Lower lines may import
# upper ones only: a cycle cannot be written down.
MAY_IMPORT = {
    "_version": "",
    "distributions": "",
    "networks": "",
    "schedules": "",
    "scopes": "",
    "allocator": "",
    "datasets": "",
    "plotting": "",
    "files": "_version",
    "objective": "schedules",
    "encoders": "distributions networks",
    "likelihoods": "distributions",
    "priors": "distributions encoders",
    "flows": "distributions encoders priors",
    "quantization": "distributions encoders priors",
    "parts": "files networks encoders likelihoods priors flows quantization",
    "record": "distributions",
    "compositions": "files scopes parts",
    "misfits": "distributions encoders record",
    "model": "scopes distributions encoders likelihoods record compositions misfits",
    "vae": "distributions encoders likelihoods priors record misfits model",
    "hierarchy": "distributions encoders likelihoods priors record misfits model",
    "two_level": "distributions encoders likelihoods priors record misfits model",
    "objectives": "scopes distributions schedules record objective model",
    "evaluation": "scopes distributions record objective",
    "summary": "scopes networks model",
    "testing": "files scopes distributions encoders likelihoods priors parts",
    "training": "_version schedules scopes files plotting objective",
}


def name_of(path):
    """Dotted name of a source file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Dotted names that a file imports, also within functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path):
    """Modules and packages of tinyvae that a file imports; ``__init__`` for tinyvae itself."""
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "tinyvae":
            module = rest.partition(".")[0]
            yield module if module in MODULES else "__init__"


# Imports ------------------------------------------------------------------------------------------


def test_the_table_goes_one_way():
    names = list(MAY_IMPORT)
    for place, (name, allowed) in enumerate(MAY_IMPORT.items()):
        assert set(allowed.split()) <= set(names[:place]), name


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path):
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if module == "__init__":
        return
    assert module in MAY_IMPORT, f"{module} is new: give it a place in the table"
    allowed = {module, *MAY_IMPORT[module].split()}
    assert set(own_imports(path)) <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_import_public_modules_only(path):
    public = {name for name in MAY_IMPORT if not name.startswith("_")} | {"__init__"}
    assert set(own_imports(path)) <= public
    for name in imports(path):
        assert not any(part.startswith("_") for part in name.split(".")), name
        if name.startswith("tinyvae."):
            module, _, attribute = name.rpartition(".")
            assert attribute in importlib.import_module(module).__all__, name


UNWANTED = ("torchvision", "matplotlib", "torch._dynamo", "tqdm.notebook", "IPython", "scipy")
IMPORT = f"""
import json, logging, random, signal, sys, threading, warnings
import numpy, torch

def state():
    return repr((
        torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), random.getstate(),
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.distributions.Distribution._validate_args, torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(), warnings.filters, logging.root.handlers,
        signal.getsignal(signal.SIGINT), threading.active_count(),
    ))

before, modules = state(), set(sys.modules)
import tinyvae
new = set(sys.modules) - modules
unwanted = [name for name in {UNWANTED!r} if name in new]
print(json.dumps([state() == before, unwanted, "tinyvae" in new]))
"""


def test_import_pulls_in_little_and_changes_nothing():
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT],
        env={"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(output.stdout) == [True, [], True]
    assert output.stderr == ""


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in SOURCES if path.stem != "_version"], ids=name_of)
def test_all_names_what_is_there(path):
    module = importlib.import_module(name_of(path))
    names = module.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(module, name) for name in names)
    # As ruff's RUF022 sorts: constants, classes, then the rest.
    assert names == sorted(names, key=lambda n: (not n.isupper(), not n[:1].isupper(), n))


def test_public_names_stand_in_all_of_their_own_module():
    for name in tinyvae.__all__:
        value = getattr(tinyvae, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert name in importlib.import_module(value.__module__).__all__, name


def test_every_module_is_there():
    modules = {m.name for m in pkgutil.walk_packages(tinyvae.__path__, "tinyvae.")}
    assert modules == {name_of(path) for path in SOURCES} - {"tinyvae"}


def test_every_public_object_is_documented():
    for name in tinyvae.__all__:
        value = getattr(tinyvae, name)
        if not inspect.isclass(value) and not inspect.isroutine(value):
            continue
        assert (value.__doc__ or "").strip(), name
        # A dataclass without a docstring is given its signature.
        assert not value.__doc__.startswith(f"{name}("), name
        members = vars(value).items() if inspect.isclass(value) else ()
        for member, function in members:
            if inspect.isfunction(function) and not member.startswith("_"):
                assert function.__doc__, f"{name}.{member}"


# What no file does --------------------------------------------------------------------------------


FORBIDDEN_CALLS = {
    "torch.load",
    "torch.save",
    "eval",
    "exec",
    "torch.manual_seed",
    "np.random.seed",
}
FORBIDDEN_CALLS |= {"torch.set_default_dtype", "torch.set_num_threads"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_pickle_no_assert_no_global_state(path):
    tree = ast.parse(path.read_text())
    modules = {name.partition(".")[0] for name in imports(path)}
    assert not modules & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not FORBIDDEN_CALLS & {ast.unparse(call.func) for call in calls}
    loads = [ast.unparse(call) for call in calls if ast.unparse(call.func) == "np.load"]
    assert all("allow_pickle=False" in load for load in loads)
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    assert all(handler.type is not None for handler in handlers)


# Versions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "pattern"),
    [("CHANGELOG.md", r"^## \[(.+?)\]"), ("CITATION.cff", r"^version: \"?([^\s\"]+)")],
)
def test_the_version_is_the_packages(file, pattern):
    found = re.search(pattern, (ROOT / file).read_text(), flags=re.MULTILINE)
    assert found[1] == tinyvae.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(dev|a|b|rc)\d+)?", tinyvae.__version__)
