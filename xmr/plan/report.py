"""A plan as text and as JSON."""

import dataclasses
import datetime
import importlib.metadata

from xmr.plan import bound


def shown(program, topology, config):
  """Returns the lines of one program for people."""
  chip, memory = topology.chip, program.memory
  share = memory["peak"] / chip.memory
  parts = ", ".join(
    f"{name} {size(memory[name])}" for name in ("arguments", "outputs", "temporary", "code")
  )
  lines = [
    f"{program.name}, {program.rows:,} samples on {topology.name}:",
    f"  memory    {size(memory['peak'])} of {size(chip.memory)} per device ({share:.0%}): {parts}",
    f"  work      {program.flops / 1e12:.3g} TFLOP over all devices",
  ]
  for each in program.moved:
    lines.append(
      f"  traffic   {each.kind}: {each.count:,} of {size(each.bytes)} in all per device and call"
    )
  if not program.moved:
    lines.append("  traffic   none between devices")
  times = ", ".join(f"{name} {duration(value)}" for name, value in program.seconds.items())
  rate = program.rows / program.bound if program.bound else 0
  lines.append(f"  at least  {duration(program.bound)} ({program.binds} binds: {times})")
  lines.append(f"  at most   {rate:,.0f} samples/s; compiled in {program.compile_seconds:.0f} s")
  if program.fits(chip):
    lines.append("  fits")
  else:
    lines.append("  DOES NOT FIT; what helps: " + "; ".join(bound.advice(program, chip, config)))
  return "\n".join(lines)


def document(programs, topology, config, *, argv):
  """Returns what the JSON holds: slice, chip, programs, versions and the command."""
  from xmr import config as config_lib

  return {
    "plan": topology.name,
    "devices": topology.size,
    "chip": dataclasses.asdict(topology.chip),
    "config": config_lib.flat(config),
    "command": "python -m xmr.plan " + " ".join(argv[1:]),
    "date": datetime.date.today().isoformat(),
    "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
    "programs": [
      dataclasses.asdict(program) | {"binds": program.binds, "fits": program.fits(topology.chip)}
      for program in programs
    ],
  }


def size(number):
  """Returns bytes with their unit."""
  for unit in ("B", "KiB", "MiB", "GiB"):
    if number < 1024 or unit == "GiB":
      return f"{number:.3g} {unit}" if number < 1024 else f"{number:,.0f} {unit}"
    number /= 1024
  return ""


def duration(seconds):
  """Returns a time with its unit."""
  for unit, factor in (("s", 1), ("ms", 1e3), ("us", 1e6)):
    if seconds * factor >= 1:
      return f"{seconds * factor:.3g} {unit}"
  return f"{seconds * 1e9:.3g} ns"
