"""Answers that are kept: what was compiled once is not compiled again while nothing changed."""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib

from xmr.errors import UserError
from xmr.plan.bound import Program
from xmr.plan.traffic import Moved
from xmr.storage import files
from xmr.storage.digests import sealed

COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # What else the compilers listen to.
ROOT = pathlib.Path(__file__).parents[1]


class Answers:
  """The programs of one question, in a file of the cache that grows with each of them."""

  def __init__(self, cache_dir, question):
    """Args: cache_dir: folder of the cache.  question: anything JSON takes, see `question`."""
    text = json.dumps(question, sort_keys=True, default=str)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    self.path = pathlib.Path(cache_dir).expanduser() / "plans" / f"{name}.json"
    self.found = {}

  def read(self):
    """Returns {name: (Program, its date)} of what was kept; {} where a file is damaged."""
    try:
      self.found = files.read_json(self.path)
      return {name: (program(each["program"]), each["date"]) for name, each in self.found.items()}
    except (UserError, KeyError, TypeError):
      self.found = {}
      return {}

  def keep(self, made):
    """Adds a Program. A cache that takes no more is no reason to stop."""
    date = datetime.date.today().isoformat()
    self.found[made.name] = {"date": date, "program": dataclasses.asdict(made)}
    with contextlib.suppress(OSError):
      self.path.parent.mkdir(parents=True, exist_ok=True)
      files.write_json(self.path, sealed(self.found))


def program(values):
  """Returns the Program of what dataclasses.asdict made of it."""
  return Program(**{**values, "moved": [Moved(**each) for each in values["moved"]]})


def question(flat_config, topology, sizes):
  """Returns all that an answer depends on.

  Args:
    flat_config: {field: value}.  topology: Topology.  sizes: Sizes.
  """
  folders = ("data.dir", "data.cache_dir")
  return {
    "config": {name: value for name, value in flat_config.items() if name not in folders},
    "topology": [topology.name, dataclasses.asdict(topology.chip)],
    "sizes": dataclasses.asdict(sizes),
    "versions": versions(),
    "flags": {name: os.environ.get(name) for name in FLAGS},
    "source": source(),
  }


def versions():
  """Returns {package: version} of the compilers that are installed."""
  found = {}
  for name in COMPILERS:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def source():
  """Returns a digest of the code of xmr."""
  digest = hashlib.sha256()
  for path in sorted(ROOT.rglob("*.py")):
    digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
  return digest.hexdigest()
