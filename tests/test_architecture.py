"""The shape of the repository: directions of imports, public names, versions."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from abc import ABC
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers.names import SUBMODULES

import tinyvae

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "tinyvae"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Every package and module of tinyvae, and which of the others it may import. A line may name only
# lines above it, so that a circle cannot be written down.
MAY_IMPORT = {
    "_version": "",
    "_devices": "",
    "errors": "",
    "schedules": "_devices",
    "datasets": "",
    "plotting": "",
    "io": "_version errors",
    "core": "_devices schedules",
    "distributions": "_devices errors",
    "networks": "core",
    "metrics": "core networks",
    "flows": "core distributions",
    "encoders": "core distributions networks flows",
    "likelihoods": "core distributions",
    "priors": "core distributions networks flows encoders",
    "models": "errors io core distributions networks flows encoders likelihoods priors",
    "objectives": "schedules core distributions models",
    "compression": "errors core distributions encoders models",
    "testing": (
        "errors schedules core distributions networks encoders likelihoods priors models objectives"
    ),
    "training": "_version _devices errors schedules io core plotting",  # no model and no objective
    "evaluation": "_devices plotting core distributions likelihoods models training",
    "tracking": "io core plotting models training evaluation",
    "hub": "_version errors io models evaluation",
    "export": "core distributions models",
    "sklearn": (
        "schedules core distributions networks encoders likelihoods priors models objectives "
        "evaluation training"
    ),
}


def name_of(path):
    """Dotted name of a source file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in SOURCES}


def imported_names(path):
    """Dotted names that a file imports, also inside functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(path):
    """Modules of tinyvae that a file imports."""
    for name in imported_names(path):
        if name.partition(".")[0] == "tinyvae":
            yield name if name in MODULES else name.rpartition(".")[0]


def package_of(module):
    """Line of the table that a module belongs to, ``""`` for tinyvae itself."""
    return [*module.split("."), ""][1]


# Imports ------------------------------------------------------------------------------------------


def test_import_table_names_only_lines_above():
    names = list(MAY_IMPORT)
    for index, (name, allowed) in enumerate(MAY_IMPORT.items()):
        assert set(allowed.split()) <= set(names[:index]), name


def test_imports_follow_the_table():
    found = {
        f"{name_of(path)} imports {module}"
        for path in SOURCES
        if (package := package_of(name_of(path)))
        for module in imported_modules(path)
        if package_of(module) not in (package, *MAY_IMPORT[package].split())
    }
    assert found == set()


def test_imports_have_no_circle():
    graph = {name_of(p): set(imported_modules(p)) - {name_of(p)} for p in SOURCES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_examples_import_public_names_only():
    for path in sorted((ROOT / "examples").glob("*.py")):
        for name in imported_names(path):
            if name.partition(".")[0] == "tinyvae":
                module, _, attribute = name.rpartition(".")
                public = module == "tinyvae" or module.count(".") == 1
                assert public, f"{path.name}: {name}"
                assert not attribute.startswith("_"), f"{path.name}: {name}"
                assert hasattr(importlib.import_module(module), attribute) or name in MODULES


UNWANTED = ("torchvision", "matplotlib", "torch._dynamo", "tqdm.notebook", "IPython", "scipy")
UNWANTED += ("sklearn", "pandas", "constriction")
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


# Names and sizes ----------------------------------------------------------------------------------


def test_top_level_has_few_names():
    names = [name for name, value in vars(tinyvae).items() if not name.startswith("_")]
    classes_and_functions = [n for n in names if not inspect.ismodule(getattr(tinyvae, n))]
    assert len(classes_and_functions) <= 36


def test_public_objects_are_documented():
    for module in (tinyvae, *SUBMODULES):
        for name, value in vars(module).items():
            if name.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
                continue
            assert (value.__doc__ or "").strip(), name
            # A dataclass without a docstring gets its signature as one.
            assert not value.__doc__.startswith(f"{name}("), name
            members = vars(value).items() if inspect.isclass(value) else ()
            for member, function in members:
                if inspect.isfunction(function) and not member.startswith("_"):
                    assert function.__doc__, f"{name}.{member}"


# Classes without abstract methods that exist to be subclassed.
BASES = {"TinyVAEError", "Configurable", "RunningStatistics", "Callback"}


def test_public_classes_are_abstract_or_final():
    classes = {
        value
        for name in MODULES
        for value in vars(importlib.import_module(name)).values()
        if inspect.isclass(value) and value.__module__ in MODULES
    }
    subclassed = {
        f"{base.__name__} <- {cls.__name__}"
        for cls in classes
        for base in classes.intersection(cls.__bases__)
        if not (inspect.isabstract(base) or ABC in base.__bases__ or base.__name__.startswith("_"))
        and base.__name__ not in BASES
    }
    assert subclassed == set()


def test_no_file_is_long():
    lengths = {name_of(path): path.read_text().count("\n") for path in SOURCES}
    too_long = {name: length for name, length in lengths.items() if length > 350}
    assert too_long == {}, "split the file by idea: the limit is 350 lines"


# What no file does --------------------------------------------------------------------------------


FORBIDDEN_CALLS = {
    "torch.load",
    "torch.save",
    "eval",
    "exec",
    "torch.manual_seed",
    "np.random.seed",
    "torch.set_default_dtype",
    "torch.set_num_threads",
}
# Files that restore the global state that a call changes.
MAY_CALL = {"tinyvae.compression.coding": {"torch.set_num_threads"}}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def test_no_pickle_no_assert_no_global_state():
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        assert not {name.partition(".")[0] for name in imported_names(path)} & PICKLES, path
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        forbidden = FORBIDDEN_CALLS - MAY_CALL.get(name_of(path), set())
        assert not forbidden & {ast.unparse(call.func) for call in calls}, path
        loads = [ast.unparse(call) for call in calls if ast.unparse(call.func) == "np.load"]
        assert all("allow_pickle=False" in load for load in loads), path
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), path
        handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
        assert all(handler.type is not None for handler in handlers), path


# Versions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "pattern"),
    [("CHANGELOG.md", r"^## \[(.+?)\]"), ("CITATION.cff", r"^version: \"?([^\s\"]+)")],
)
def test_version_is_that_of_the_package(file, pattern):
    match = re.search(pattern, (ROOT / file).read_text(), flags=re.MULTILINE)
    assert match[1] == tinyvae.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(dev|a|b|rc)\d+)?", tinyvae.__version__)
