"""How the site is built; `make docs` writes it to site/, without a network and without a warning."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools/ is of the checkout, and not installed

import devicekit
from tools import public_names

public_names.main()  # docs/reference, which follows the code

project = "devicekit"
author = "the devicekit authors"
release = version = devicekit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["idea.md"]  # index.rst includes it
nitpicky = False  # signatures name types of torch and of private modules, which have no page here

# A builtin type in a signature, such as bytes, is taken for every attribute of that name.
suppress_warnings = ["ref.python"]

myst_heading_anchors = 4
myst_links_external_new_tab = False

default_role = "code"  # docstrings put names in single quotation marks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_use_legacy_class_based = False
napoleon_google_docstring = True
napoleon_numpy_docstring = True
napoleon_use_ivar = True  # attributes that a docstring lists are listed by the class as well
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"devicekit {version}"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_extra_path: list[str] = []
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
