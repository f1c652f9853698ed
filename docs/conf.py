import inspect
import os
import sys
from pathlib import Path
from types import ModuleType

import tinyvae
import tinyvae.compression
import tinyvae.export
import tinyvae.hub
import tinyvae.sklearn
import tinyvae.tracking

sys.path.append(str(Path(__file__).parent / "_extensions"))

project = "tinyvae"
author = "The tinyvae developers"
copyright = "2026, The tinyvae developers"
version = release = tinyvae.__version__

extensions = [
    "executed",
    "llms",
    "notebooks",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
if os.environ.get("TINYVAE_INTERSPHINX"):  # needs the network
    extensions.append("sphinx.ext.intersphinx")
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "sklearn": ("https://scikit-learn.org/stable", None),
    "matplotlib": ("https://matplotlib.org/stable", None),
}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autosummary_imported_members = True  # a package's public names are what its __init__ imports
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
napoleon_custom_sections = ["Shape"]
napoleon_use_ivar = True
html_theme = "furo"
html_title = "tinyvae"
html_static_path = ["_static"]
templates_path = ["_templates"]
exclude_patterns = ["_build"]

nitpicky = True
OTHERS = "abc|collections|contextlib|matplotlib|nn|numpy|os|pathlib|sklearn|torch|typing"
ALIASES = (
    "Array|Data|Decode|DecodingVAE|Figure|FigureFunction|JSON|Limits|Path|Tensor|Values|Optimizer"
)
nitpick_ignore_regex = [  # without intersphinx, names of other libraries have no page
    ("py:.*", rf"_?({OTHERS})\..*"),
    ("py:class", rf"(tinyvae\..*\.)?({ALIASES})"),  # aliases, and names imported for types alone
    ("py:class", r"tinyvae\.training\.(state\.Stateful|plan\.RunPlan|rows\.Block)"),  # attributes
]


def address_names():
    """Return the name under which each public class and function has a page, by short name."""
    modules = {name: m for name, m in vars(tinyvae).items() if isinstance(m, ModuleType)}
    return {
        name: f"tinyvae.{module}.{name}"
        for module, contents in modules.items()
        for name, value in vars(contents).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and is_own(value)
    }


def is_own(value):
    return value.__module__.startswith("tinyvae")


PAGES = address_names()


def skip_foreign(app, what, name, value, skip, options):
    """Leave out what a module imports from other libraries."""
    defined = inspect.isclass(value) or inspect.isfunction(value)
    return True if defined and not is_own(value) else None  # None: decide as usual


def resolve_public_name(app, env, node, contnode):
    """Resolve ``tinyvae.VAE``, ``VAE`` and ``VAE.sample`` to the page of ``tinyvae.models.VAE``."""
    target = node.get("reftarget", "").split(".")
    public = [index for index, part in enumerate(target) if part in PAGES]
    if node.get("refdomain") != "py" or not public:
        return None
    name = ".".join([PAGES[target[public[0]]], *target[public[0] + 1 :]])
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, contnode)


def show_public_bases(app, name, cls, options, bases):
    """Replace bases that have no page by their own bases."""
    shown = [base for base in cls.__mro__[1:] if not is_own(base) or base.__name__ in PAGES]
    ancestors = {ancestor for base in shown for ancestor in base.__mro__[1:]}
    bases[:] = [base for base in shown if base not in ancestors] or [object]


def setup(app):
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("autodoc-process-bases", show_public_bases)
    app.connect("missing-reference", resolve_public_name)
