"""Tables of the fields of a config, generated from their declarations."""

import itertools

from xmr import config as config_lib
from xmr.losses import table as losses
from xmr.models import table as models
from xmr.results.grid import grid

HEADS = ["field", "default", "allowed", "what"]


def tables():
  """Returns {name: Markdown} of the tables that docs/configs.md and docs/losses.md hold."""
  return {"fields": of_config(), "loss-fields": of_losses(), "encoder-fields": of_encoders()}


def of_config():
  """Returns a table per section, of all fields but those that losses and encoders bring."""
  rows = config_lib.fields_of("retrieval").items()
  parts = []
  for section, group in itertools.groupby(rows, key=lambda row: row[0].rpartition(".")[0]):
    title = f"**`{section}`**" if section else "**the run**"
    parts.append(f"{title}\n\n{grid(HEADS, [line(*row) for row in group])}")
  return "\n\n".join(parts)


def of_losses():
  """Returns a table of each loss and its parameters; which of them may be learned is said."""
  lines = []
  for name, row in losses.LOSSES.items():
    for key, field in row.parameters.items():
      _, default, allowed, about = line(key, field)
      learned = "; may be learned" if key in row.learn else ""
      lines.append([f"`{name}`", f"`{key}`", default, allowed, about + learned])
    if not row.parameters:
      lines.append([f"`{name}`", "", "", "", "no parameter"])
  return grid(["loss.name", *HEADS], lines)


def of_encoders():
  """Returns a table of each encoder, what it reads, and its fields."""
  lines = []
  for side, encoders in models.SIDES.items():
    for name, row in encoders.items():
      shown = ", ".join(f"`{key}`={value(each.default)}" for key, each in row.fields.items())
      lines.append([f"`model.{side}.name={name}`", row.reads, shown])
  return grid(["encoder", "reads", "fields with their defaults"], lines)


def line(name, field):
  """Returns the cells of a field."""
  return [f"`{name}`", value(field.default), cell(field.allowed), cell(field.about)]


def value(default):
  """Returns a default as it is written on the command line, as a cell of a table."""
  return cell(f"`{default!r}`") if default != "" else "empty"


def cell(text):
  """Returns a text that ends no cell of a table."""
  return text.replace("|", "\\|")
