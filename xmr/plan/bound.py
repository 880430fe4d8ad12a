"""What a compiled program takes of a chip, and the least time that its work can take."""

import dataclasses

from xmr.plan import operations, traffic


@dataclasses.dataclass(frozen=True)
class Program:
  """What is known of one compiled program, for one device of P.

  Attributes:
    name: for people.  rows: samples that one call handles, over all devices.
    parts: {what: bytes} of its arguments, for people.
    memory: bytes: "peak", "arguments", "outputs", "temporary", "code"; outputs that take the
      place of arguments count once in the peak.
    flops: of products and convolutions, over all devices.
    moved: list of traffic.Moved, of one device.
    seconds: lower bounds: "compute", "memory", "interconnect".
    compile_seconds: that the compiler took.
  """

  name: str
  rows: int
  parts: dict[str, float]
  memory: dict[str, float]
  flops: float
  moved: list[traffic.Moved]
  seconds: dict[str, float]
  compile_seconds: float

  @property
  def compiled(self):
    """True; least.TooLarge is not."""
    return True

  @property
  def binds(self):
    """Which of the bounds is the largest."""
    return max(self.seconds, key=lambda name: self.seconds[name])

  @property
  def bound(self):
    """The least time of one call: that of the slowest part, if all run side by side."""
    return self.seconds[self.binds]

  def fits(self, chip):
    """Says whether the peak is below the chip's memory."""
    return self.memory["peak"] <= chip.memory


def of(name, traced, compiled, *, rows, parts, topology, compile_seconds):
  """Returns the Program of a compiled function.

  Args:
    name, rows, parts, compile_seconds: as in Program.
    traced: of jit(...).trace(...), whose equations are counted.
    compiled: its executable.  topology: Topology that it is for.
  """
  chip, devices = topology.chip, topology.size
  memory = memory_of(compiled)
  moved = traffic.collectives(compiled.as_text(), devices=devices)
  flops = operations.count(traced.jaxpr)
  # What goes in, comes out and is kept meanwhile passes the memory at least once.
  passed = memory["arguments"] + memory["outputs"] + memory["temporary"]
  seconds = {
    "compute": flops / devices / chip.flops,
    "memory": passed / chip.bandwidth,
    # Links are stated for both directions together.
    "interconnect": 2 * sum(each.sent for each in moved) / chip.link,
  }
  return Program(name, rows, parts, memory, flops, moved, seconds, compile_seconds)


def memory_of(compiled):
  """Returns bytes on one device: "peak", "arguments", "outputs", "aliased", "temporary", "code"."""
  found = compiled.memory_analysis()
  memory = {
    "arguments": found.argument_size_in_bytes,
    "outputs": found.output_size_in_bytes,
    "aliased": found.alias_size_in_bytes,
    "temporary": found.temp_size_in_bytes,
    "code": found.generated_code_size_in_bytes,
  }
  together = memory["arguments"] + memory["outputs"] - memory["aliased"] + memory["temporary"]
  # Some compilers state a peak of temporaries alone, or none.
  memory["peak"] = max(getattr(found, "peak_memory_in_bytes", 0) or 0, together) + memory["code"]
  return memory
