"""Bytes that the kernels of `xmr.ops.outer_sums` move, beside XLA's form of the same sums, on a
chip that is not there:

  python -m xmr.bench.kernels --topology=v5e:2x4 --json=FILE

Nothing runs, one device compiles. Of XLA's form, what each instruction reads and writes counts as
often as its loop runs it, but for what lies in the memory of a TPU's core (the compiler's own count
takes a loop once). Of a kernel, each block counts that it fetches or stores.
"""

import datetime
import functools
import re
import sys

from xmr import command_line
from xmr.errors import reported
from xmr.plan import topology as topologies
from xmr.plan import traffic
from xmr.storage import files

DIM, BATCHES = 1024, (1024, 4096)
TERMS = {"L1 distance": "absolute", "order similarity": "shortfall_squared"}
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((.*)$")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
FUSED = re.compile(r"(?:kind=k\w+.*?calls|to_apply)=%?([\w.\-]+)")
# What moves nothing, or is counted where it starts; of a kernel the blocks count.
FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional"}
FREE |= {"copy-done", "slice-done", "custom-call"}


def moved(text):
  """Returns the bytes that the instructions of a compiled program's text read from main memory and
  write to it, but for kernels.
  """
  times, fused, inside = traffic.repetitions(text), set(FUSED.findall(text)), {}
  for name, line in traffic.lines(text):
    if match := INSTRUCTION.match(line):
      inside.setdefault(name, {})[match[1]] = *match.groups()[1:], line
  total = 0.0
  for name in set(inside) - fused:
    for shape, kind, rest, line in inside[name].values():
      if kind in FREE or not times.get(name):
        continue
      size, called = of_shape(shape), FUSED.search(line)
      # A copy's start names in its result what it reads.
      for number, operand in enumerate([] if kind.endswith("-start") else operands(rest)):
        whole = inside[name].get(operand, ("",))[0]
        size += read(inside[called[1]], number, whole) if called else of_shape(whole)
      total += times[name] * size
  return total


def read(body, number, whole):
  """Returns the bytes that a fusion reads of an operand: of one that it only slices, the slices."""
  names = {n for n, x in body.items() if x[1] == "parameter" and x[2].startswith(f"{number})")}
  users = []
  while names:
    found = {n: x for n, x in body.items() if names & set(operands(x[2]))}
    users += [x for x in found.values() if x[1] != "bitcast"]
    names = {n for n, x in found.items() if x[1] == "bitcast"}
  if of_shape(whole) and users and all(x[1] in ("slice", "dynamic-slice") for x in users):
    return sum(of_shape(x[0], everywhere=True) for x in users)
  return of_shape(whole)


def operands(rest):
  """Returns the names of an instruction's operands."""
  return re.findall(r"%([\w.\-]+)", rest.split("), ")[0])


def of_shape(shape, *, everywhere=False):
  """Returns the bytes of a shape or a tuple; of a TPU only what lies in main memory, or all."""
  parts = SHAPE.findall(shape)
  return sum(traffic.size(kind, n) for kind, n, where in parts if everywhere or "S(" not in where)


def of_kernels(jaxpr):
  """Returns the bytes that the kernels of a program state."""
  from xmr.plan import operations

  total = 0.0
  for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
    if equation.primitive.name == "pallas_call":
      total += equation.params["cost_estimate"].bytes_accessed
    total += sum(map(of_kernels, operations.inner_of(equation.params)))
  return total


def measured(function, shapes, device, platform):
  """Returns {"moved", "peak"}, bytes of a function of arrays of those shapes, on a device."""
  import jax

  from xmr.plan import bound, topology

  place = jax.sharding.SingleDeviceSharding(device)
  arrays = [jax.ShapeDtypeStruct(shape, "float32", sharding=place) for shape in shapes]
  traced = jax.jit(function, out_shardings=place).trace(*arrays)
  made = topology.executable(traced, platform)
  return {
    "moved": moved(made.as_text()) + of_kernels(traced.jaxpr),
    "peak": bound.memory_of(made)["peak"],
  }


def compared(device, platform):
  """Yields a dict of each sum, its gradient and batch: "name", "batch", "least" (inputs and
  outputs), "xla" and, where there is one, "kernel".
  """
  from xmr.ops import cdist, outer_sums

  slopes = {"cuda": outer_sums.on_gpu, "tpu": outer_sums.on_tpu}[platform]
  for name, term in TERMS.items():
    value = functools.partial(cdist.value_on_gpu, term) if platform == "cuda" else None
    rows = {
      name: (lambda x, y, term=term: cdist.sum_over_features(term, x, y, False), value, 2),
      f"{name}, gradient": (
        functools.partial(cdist.weighted_slopes, term, tiled=False),
        functools.partial(cdist.slopes_by, slopes, term),
        3,
      ),
    }
    for (label, (xla, kernel, count)), batch in (
      (row, batch) for row in rows.items() for batch in BATCHES
    ):
      sizes = [(batch, batch), (batch, DIM), (batch, DIM)]
      least = 4 * batch * (2 * DIM + batch + (DIM if count == 3 else 0))
      found = {"name": label, "batch": batch, "least": least}
      for form, function in (("xla", xla), ("kernel", kernel)):
        if function is not None:
          found[form] = measured(function, sizes[-count:], device, platform)
      yield found


def main(argv):
  """Runs one command line."""
  parser = command_line.parser("xmr.bench.kernels", __doc__)
  parser.add_argument("--topology", help="CHIP:SHAPE, as v5e:2x4, h100:8")
  parser.add_argument("--json", help="file that gets the record")
  with reported():
    options = command_line.parsed(
      parser,
      argv[1:],
      needed=("topology", "json"),
      usage="--topology=CHIP:SHAPE --json=FILE",
    )
    topology = topologies.parse(options.topology)
    topologies.prepare(topology)
    from xmr.plan import answers

    device = topologies.devices(topology)[0]
    record = {
      "bench": "kernels",
      "chip": topology.chip.name,
      "dim": DIM,
      "command": f"python -m xmr.bench.kernels --topology={topology.name} --json=FILE",
      "date": datetime.date.today().isoformat(),
      "versions": answers.versions(),
      "cases": list(compared(device, topology.chip.platform)),
    }
    files.write_json(options.json, record)


if __name__ == "__main__":
  main(sys.argv)
