import inspect
from types import ModuleType

import tinyvae
import tinyvae.compression
import tinyvae.export
import tinyvae.hub
import tinyvae.sklearn
import tinyvae.tracking

project = "tinyvae"
author = "The tinyvae developers"
copyright = "2026, The tinyvae developers"
version = release = tinyvae.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autosummary_imported_members = True  # a package's public names are what its __init__ imports
napoleon_custom_sections = ["Shape"]
napoleon_use_ivar = True
html_theme = "furo"
html_title = "tinyvae"
html_static_path = ["_static"]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
nitpicky = False

SUBMODULES = [module for module in vars(tinyvae).values() if isinstance(module, ModuleType)]
PUBLIC = {name: value for module in (*SUBMODULES, tinyvae) for name, value in vars(module).items()}


def skip_foreign(app, what, name, value, skip, options):
    """Leave out what a module imports from other libraries."""
    defined = inspect.isclass(value) or inspect.isfunction(value)
    foreign = defined and not value.__module__.startswith("tinyvae")
    return True if foreign else None  # None: decide as usual


def resolve_public_name(app, env, node, contnode):
    """Resolve ``tinyvae.VAE`` and ``VAE`` to the page of ``tinyvae.models.VAE``."""
    value = PUBLIC.get(node.get("reftarget", "").removeprefix("~").rpartition(".")[2])
    if node.get("refdomain") != "py" or not (inspect.isclass(value) or inspect.isfunction(value)):
        return None
    name = f"{value.__module__}.{value.__qualname__}"
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, contnode)


def setup(app):
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("missing-reference", resolve_public_name)
