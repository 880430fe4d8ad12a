"""A field of a config: its default, allowed values and meaning, declared together."""

import ast
import dataclasses
import functools
import importlib
import importlib.util
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import ml_collections

from xmr.errors import UserError

if TYPE_CHECKING:

  class Config(ml_collections.ConfigDict):
    """A config or a section of one; type checkers know its fields as Any."""

    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any) -> None: ...
    def __getitem__(self, key: str) -> Any: ...
    def lock(self) -> Self: ...
    def unlock(self) -> Self: ...
    def copy_and_resolve_references(self, visit_map=None) -> Self: ...
else:
  Config = ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Field:
  """Default, allowed values and meaning of a field; made by `field`."""

  default: Any = None
  about: str = ""
  choices: tuple | str | Mapping = ()
  at_least: float | None = None
  above: float | None = None
  at_most: float | None = None
  below: float | None = None
  resumable: bool = False
  elsewhere: bool = False

  @property
  def known(self):
    """The values that `choices` holds or names; () where it says nothing."""
    return constant(self.choices) if isinstance(self.choices, str) else tuple(self.choices)

  @property
  def allowed(self):
    """What the field may be, in words: "one of a, b", "from 0 to below 1"; "" for anything."""
    if self.choices:
      return "one of " + ", ".join(map(str, self.known))
    low, above, high, below = map(shown, (self.at_least, self.above, self.at_most, self.below))
    high = f"below {below}" if below else high
    if low:
      return f"from {low} to {high}" if high else f"{low} or more"
    if above:
      return f"more than {above}" + (f", at most {high}" if high else "")
    return f"at most {high}" if high else ""

  def check(self, name, value):
    """Raises UserError where a value, or an entry of a list of numbers, is not allowed."""
    if self.choices and value not in self.known:
      raise UserError(f"{name} is {value!r}; expected {self.allowed}")
    for number in value if isinstance(value, tuple | list) else (value,):
      if isinstance(number, bool) or not isinstance(number, int | float):
        continue
      if isinstance(number, float) and not math.isfinite(number):
        raise UserError(f"{name} is {number}; expected a finite number")
      if (
        (self.at_least is not None and number < self.at_least)
        or (self.above is not None and number <= self.above)
        or (self.at_most is not None and number > self.at_most)
        or (self.below is not None and number >= self.below)
      ):
        raise UserError(f"{name} is {number}; expected {self.allowed}")


def field(default=None, about="", **limits):
  """Declares a field: `field(0.2, "of the hinge", at_least=0)`.

  Args:
    default: its value unless it is set, which also gives its type. Left out where the signature of
      a function or class has it.
    about: its meaning.
    **limits: choices (a tuple, a table, or its path as of `constant`); at_least, above, at_most,
      below (numbers; for a list, of each entry); resumable: True where the field may change between
      two starts of a run, as it does not affect the steps already done; elsewhere: True where it
      says where a run computes or what it shows, and changes no result.
  """
  return Field(default, about, **limits)


def shown(number):
  """Returns a limit in words: "10,000" for 1e4, "0.01", "1e+38"; "" for None."""
  if number is None:
    return ""
  whole = isinstance(number, float) and number.is_integer() and abs(number) < 1e15
  return f"{int(number) if whole else number:,}"


def resolve(path):
  """Returns the object that "package.module.name" names; returns anything but a str unchanged."""
  if not isinstance(path, str):
    return path
  module, _, name = path.rpartition(".")
  return getattr(importlib.import_module(module), name)


@functools.cache
def source(module):
  """Returns {name: node} of the top level of a module's source, without importing the module."""
  found = {}
  spec = importlib.util.find_spec(module)
  if spec is None or spec.origin is None:
    raise ModuleNotFoundError(f"no source of module {module}", name=module)
  for node in ast.parse(pathlib.Path(spec.origin).read_text(encoding="utf-8")).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      found[node.name] = node
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
      found[node.targets[0].id] = node.value
  return found


def constant(path):
  """Returns the tuple "package.module.NAME", or its keys if it is a dict; reads the module if it
  has been imported, else its source.
  """
  module, _, name = path.rpartition(".")
  loaded = sys.modules.get(module)
  if loaded is not None and name in vars(loaded):
    return tuple(vars(loaded)[name])
  node = source(module)[name]
  return tuple(map(literal, node.keys if isinstance(node, ast.Dict) else node.elts))


def defaults(path):
  """Reads the defaults of a function or class from its source.

  Args:
    path: "package.module.name", or the function or class itself.
  Returns:
    {name: default} of a function's keyword-only parameters, or a class's fields, with a literal
    default other than None; a parameter with default None takes a tensor.
  """
  if not isinstance(path, str):
    path = f"{path.__module__}.{path.__qualname__}"
  module, _, name = path.rpartition(".")
  node = source(module)[name]
  if isinstance(node, ast.FunctionDef):
    found = zip([a.arg for a in node.args.kwonlyargs], node.args.kw_defaults, strict=True)
  else:
    declared = (a for a in node.body if isinstance(a, ast.AnnAssign))
    found = ((a.target.id, a.value) for a in declared if isinstance(a.target, ast.Name))
  return {key: value for key, value in ((k, literal(v)) for k, v in found) if value is not None}


def literal(node) -> Any:
  """Returns the value of a literal of the source, or None for anything else."""
  try:
    return None if node is None else ast.literal_eval(node)
  except ValueError:
    return None


class Section(Config):
  """A section whose `name` picks a row of a table; the fields of the row stand beside it.

  A new name replaces the fields with those of its row, at their defaults. Subclasses say which
  fields a name has, and which values are kept.
  """

  NAME = Field()  # what `name` may be
  WHERE = "config"  # of the section, for the errors

  @staticmethod
  def declared(name):
    """Returns {field: Field} of a name, all with defaults; UserError for an unknown name."""
    raise NotImplementedError

  def kept(self, fields):
    """Returns {field: value} of the values that are kept under a new name with these fields."""
    del fields
    return {}

  def __getitem__(self, key):
    if key not in self._fields:
      raise KeyError(self.unknown(key))
    return super().__getitem__(key)

  def unknown(self, key):
    """Returns the error message for a field that the row does not have."""
    own = ", ".join(other for other in self._fields if other != "name")
    return f"{self.WHERE} {self._fields.get('name')} has no field {key}; expected some of {own}"

  def __setitem__(self, key, value):
    if self.is_locked and key not in self._fields:
      raise KeyError(self.unknown(key))
    if key == "name" and value != self._fields.get("name"):
      fields = self.declared(value)
      kept, locked = self.kept(fields), self.is_locked
      # Not unlocked(): a section that is being made has nothing to unlock.
      self.unlock()
      self._fields.clear()
      super().__setitem__("name", value)
      for other, declared in fields.items():
        super().__setitem__(other, kept.get(other, declared.default))
      if locked:
        self.lock()
      return
    super().__setitem__(key, value)

  def update_from_flattened_dict(self, flattened_dict, strip_prefix=""):
    """As ConfigDict's; the name comes first, whatever the order of the keys."""
    if f"{strip_prefix}name" in flattened_dict:
      self.name = flattened_dict[f"{strip_prefix}name"]
    super().update_from_flattened_dict(flattened_dict, strip_prefix)

  def update(self, *other, **values):
    """As ConfigDict's; the name comes first."""
    for given in (*other, values):
      if "name" in given:
        self.name = given["name"]
    super().update(*other, **values)
