"""Sphinx settings: plain Markdown through MyST, as it is read on a forge."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

project = "xmr"
author = "the xmr authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
# Links to files of the repository, such as ../configs/own.py, are right on a forge.
myst_all_links_external = False
suppress_warnings = []
nitpicky = False
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "sidebar_width": "240px"}
html_sidebars = {"**": ["about.html", "searchbox.html", "navigation.html"]}
autodoc_default_options = {"members": True, "imported-members": False}
autodoc_typehints = "signature"
