"""A plan as text and as JSON."""

import dataclasses
import datetime

from xmr.plan.advice import advice
from xmr.plan.answers import versions


def shown(program, topology, config):
  """Returns the lines of one program for people."""
  chip = topology.chip
  head = f"{program.name}, {program.rows:,} samples on {topology.name}:"
  if not program.compiled:
    advised = "; ".join(advice(program.parts, chip, config))
    return "\n".join(
      [
        head,
        f"  memory    at least {size(program.bytes)} of {size(chip.memory)} per device, before "
        f"anything is computed: {sizes_of(program.parts)}",
        f"  DOES NOT FIT, so nothing was compiled; what helps: {advised}",
      ]
    )
  memory = program.memory
  share = memory["peak"] / chip.memory
  kinds = {name: memory[name] for name in ("arguments", "outputs", "temporary", "code")}
  lines = [
    head,
    f"  memory    {size(memory['peak'])} of {size(chip.memory)} per device ({share:.0%}): "
    + sizes_of(kinds),
    f"  work      {program.flops / 1e12:.3g} TFLOP over all devices",
  ]
  if program.parts:
    lines.insert(2, f"  of them   {sizes_of(program.parts)}")
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
    parts = {**program.parts, "temporary": memory["temporary"]}
    lines.append("  DOES NOT FIT; what helps: " + "; ".join(advice(parts, chip, config)))
  return "\n".join(lines)


def sizes_of(parts):
  """Returns "parameters 3 MiB, batch 1 MiB", without parts of nothing."""
  return ", ".join(f"{name} {size(value)}" for name, value in parts.items() if value)


def document(programs, topology, config, sizes, *, argv):
  """Returns what the JSON holds: slice, chip, sizes, programs, versions and the command.

  Fields of the config are those that differ from the defaults, as in the record of a run.
  """
  from xmr import config as config_lib
  from xmr.eval import results
  from xmr.results import records

  return {
    "plan": topology.name,
    "devices": topology.size,
    "chip": dataclasses.asdict(topology.chip),
    "config": records.differences(config_lib.flat(config)),
    "sizes": dataclasses.asdict(sizes),
    "command": "python -m xmr.plan " + " ".join(argv[1:]),
    "date": datetime.date.today().isoformat(),
    "versions": versions(),
    "commit": results.commit(),
    "programs": [of_program(program, topology.chip) for program in programs],
  }


def of_program(program, chip):
  """Returns the JSON of a program."""
  found = dataclasses.asdict(program) | {"fits": program.fits(chip)}
  if program.compiled:
    return found | {"binds": program.binds}
  return found | {"memory": {"at_least": program.bytes}}


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
