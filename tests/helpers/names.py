"""The library's public names, as the examples in the documentation use them."""

from types import ModuleType

import tinyvae

SUBMODULES = [module for module in vars(tinyvae).values() if isinstance(module, ModuleType)]


def public_names():
    """Names of all public submodules and of the top level, by name."""
    names = {}
    for module in (*SUBMODULES, tinyvae):
        names |= {n: value for n, value in vars(module).items() if not n.startswith("_")}
    return names
