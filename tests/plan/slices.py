"""Slices for tests: devices that are not there, and what every program for them promises."""

import contextlib
import functools
import importlib.util
import re

import jax
import pytest
import quick_compilation

from xmr import parallel
from xmr.plan import bound, topology, traffic

COMPILERS = {"tpu": ("libtpu", "plan"), "cuda": ("jax_plugins.xla_cuda13", "plan-cuda")}


@functools.cache
def mesh_of(name):
  """The mesh of a slice, "v5e:2x4"; skips where its compiler is not installed."""
  wanted = topology.parse(name)
  package, extra = COMPILERS[wanted.chip.platform]
  try:
    found = importlib.util.find_spec(package)
  except ModuleNotFoundError:
    found = None
  if found is None:
    pytest.skip(f"the extra {extra} is not installed")
  topology.prepare(wanted)
  quick_compilation.keep_from_libtpu()
  return parallel.mesh(topology.devices(wanted))


@contextlib.contextmanager
def all_passes():
  """Lets the compiler do all that it does in a run; the tests' processes leave much of it out."""
  name = "jax_disable_most_optimizations"
  before = jax.config.read(name)
  jax.config.update(name, False)
  try:
    yield
  finally:
    jax.config.update(name, before)


class Made:
  """A compiled program with what is asserted of it."""

  def __init__(self, traced, mesh):
    kind = mesh.devices.flat[0].platform
    with all_passes():
      compiled = topology.executable(traced, {"gpu": "cuda"}.get(kind, kind))
    self.text, self.memory = compiled.as_text(), bound.memory_of(compiled)
    self.moved = traffic.collectives(self.text, devices=mesh.size)

  @property
  def sent(self):
    """Bytes that a device sends."""
    return sum(each.sent for each in self.moved)

  @property
  def peak(self):
    """Bytes on a device, without the program itself."""
    return self.memory["peak"] - self.memory["code"]

  def stays_on_the_devices(self):
    """Asserts that nothing asks the host and that nothing is computed in float64."""
    assert not re.search(r"custom-call.*(callback|HostExecute)|\b(infeed|outfeed)\(", self.text)
    assert "f64[" not in self.text and "c128[" not in self.text

  def takes_the_place_of(self, tree):
    """Asserts that every array of a donated tree is aliased with an output."""
    header = self.text.splitlines()[0]
    aliases = re.findall(r"\(\d+, \{[\d, ]*\}, (?:may|must)-alias\)", header)
    assert len(aliases) == len(jax.tree.leaves(tree))
