"""The annotations of the project's own packages are checked while its tests run.

Every annotated function of a module under PACKAGES is wrapped when the module is imported, and
every annotated method of its classes: beartype checks types, jaxtyping the shapes that the
arguments and the result have in common, and those of a dataclass's fields. What a function refuses
by an error of its own may break its types; what breaks them and passes is an error here.
"""

import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import types

from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError, jaxtyped

PACKAGES = (
  "xmr.checkpoint",
  "xmr.data.pipeline",
  "xmr.data.split",
  "xmr.eval",
  "xmr.losses",
  "xmr.mining",
  "xmr.models",
  "xmr.ops",
)
# Dataclasses whose fields are checked when one is made.
SHAPED = ("Split",)
# Methods that others made out of the annotations of a class.
MADE = ("__init__", "__post_init__", "__replace__", "__annotate_func__")
# An int is a float, as for every type checker.
NUMBERS = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function):
  """Returns the function with its annotations enforced."""
  typed = jaxtyped(function, typechecker=NUMBERS)

  @functools.wraps(function)
  def call(*args, **kwargs):
    try:
      return typed(*args, **kwargs)
    except TypeCheckError:
      # Wrong input gets the function's own error; it must not pass.
      function(*args, **kwargs)
      raise

  return call


def annotated(value):
  """Says whether a value is a function with types, which its call ends."""
  return (
    isinstance(value, types.FunctionType)
    and bool(value.__annotations__)
    and not inspect.isgeneratorfunction(value)
  )


class _Loader(importlib.abc.Loader):
  """A loader that wraps what a module defines, once the module is there."""

  def __init__(self, loader):
    self.loader = loader

  def __getattr__(self, name):
    return getattr(self.loader, name)

  def create_module(self, spec):
    return self.loader.create_module(spec)

  def exec_module(self, module):
    self.loader.exec_module(module)
    for name, value in list(vars(module).items()):
      if getattr(value, "__module__", None) != module.__name__:
        continue
      if annotated(value):
        setattr(module, name, checked(value))
      elif inspect.isclass(value):
        for method, function in list(vars(value).items()):
          if method not in MADE and annotated(function):
            setattr(value, method, checked(function))
        if name in SHAPED:
          jaxtyped(value, typechecker=NUMBERS)


class _Finder(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path, target=None):
    if not any(name == each or name.startswith(f"{each}.") for each in PACKAGES):
      return None
    spec = importlib.machinery.PathFinder.find_spec(name, path, target)
    if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
      spec.loader = _Loader(spec.loader)
    return spec


def install():
  """Checks every module of PACKAGES that is imported from now on; returns nothing."""
  if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, _Finder())
