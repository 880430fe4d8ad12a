"""Sphinx settings: plain Markdown through MyST, as it is read on a forge."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

project = "xmr"
author = "the xmr authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "sidebar_width": "240px", "show_powered_by": False}
html_static_path = ["_static"]
html_css_files = ["xmr.css"]
html_sidebars = {"**": ["about.html", "searchbox.html", "navigation.html"]}


def as_written(app, what, name, obj, options, lines):
  """Shows a docstring as it stands in the source: formulas and shapes are aligned by hand."""
  if len(lines) > 1:
    rest = ["    " + line for line in lines[1:]]
    lines[:] = [
      lines[0].replace("*", r"\*").replace("|", r"\|"),
      "",
      ".. code-block:: text",
      "",
      *rest,
    ]


def setup(app):
  """Connects the above."""
  app.connect("autodoc-process-docstring", as_written)
