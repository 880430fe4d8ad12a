"""Markdown tables."""


def grid(heads, lines):
  """Returns a table of headings and of lines of cells."""
  rows = [heads, ["---"] * len(heads), *lines]
  return "\n".join("| " + " | ".join(row) + " |" for row in rows)
