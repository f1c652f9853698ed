"""The public names of the library, which the examples in the documentation use."""

from types import ModuleType

import tinyvae

SUBMODULES = [module for module in vars(tinyvae).values() if isinstance(module, ModuleType)]


def public_names():
    """Return all objects of the public submodules and the top level, by name."""
    names = {}
    for module in (*SUBMODULES, tinyvae):
        names |= {n: value for n, value in vars(module).items() if not n.startswith("_")}
    return names
