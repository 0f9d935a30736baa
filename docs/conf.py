"""Sphinx's configuration: Markdown pages, reST docstrings, formulas by a MathJax of our own, and no network."""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "latentpg"
author = "latentpg contributors"
copyright = "2026, latentpg contributors"
release = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "public_names"]
exclude_patterns = ["_build", "_static"]

html_theme = "furo"
html_title = f"latentpg {release}"
html_static_path = ["_static"]
html_css_files = ["math.css"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

mathjax_path = "mathjax/es5/tex-mml-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}  # the menu would fetch what is not vendored

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

# A reference that leads nowhere is a fault, except into other people's documentation, which is not at hand offline.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|pyro|numpy|np|jaxtyping|gymnasium|collections|typing|contextlib|pathlib|types|enum)(\..*)?"),
]
