import tinyvae

project = "tinyvae"
author = "The tinyvae developers"
copyright = "2026, The tinyvae developers"
version = release = tinyvae._version.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_custom_sections = ["Shape"]
napoleon_use_ivar = True
html_theme = "furo"
html_title = "tinyvae"
html_static_path = ["_static"]
exclude_patterns = ["_build"]
nitpicky = False
