"""What a compiled program moves between devices, read from its text; loops count as often as they
run.
"""

import dataclasses
import math
import re

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "token": 0, "opaque": 0}
KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
CALLED = re.compile(
  r"(?:calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)"
)
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
BODY = re.compile(r"\bbody=%?([\w.\-]+)")
CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
# The compiler for TPUs says no turns; a loop that counts up ends at the constant of its condition.
BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
TRIPS = re.compile(r'"?known_trip_count"?:?\{"?n"?:"?(\d+)"?\}')
GROUP = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])")
# On TPUs a collective can run beside other work: every fusion of that chain names it once more.
CHAIN = re.compile(r"%?([\w.\-]+) = .*chain_id=\"(\d+)\"")
STARTED = re.compile(r'custom-call\(%?([\w.\-]+)[,)].*"AsyncCollectiveStart"')
# A mesh and those of its axes over which the devices of a group lie: mesh['a'=8,'b'=1] {'a'}; of an
# axis in parts the size of the part counts, 'a':(2)4.
MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}")
AXIS = re.compile(r"'([^']*)'=(\d+)")
USED = re.compile(r"'([^']*)'(?::\(\d+\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Moved:
  """Collectives of one kind: how many, bytes of their results, and what each device sends."""

  kind: str
  count: int
  bytes: float
  sent: float


def collectives(text, *, devices):
  """Returns [Moved] of a compiled program's text (`compiled.as_text()`), for one device.

  Args:
    text: HLO.  devices: of the program, where a collective names no group.
  Returns:
    one Moved per kind. A ring sends (P - 1) / P of what it gathers, twice that of what it reduces
    to all, and what it permutes.
  """
  times, again = repetitions(text), repeated(text)
  found = {}
  for name, line in lines(text):
    match = COLLECTIVE.search(line)
    if match is None or times.get(name, 0) == 0 or (name, line) in again:
      continue
    kind, size = match[2], bytes_of(match[1], started=bool(match[3]), kind=match[2])
    group = group_of(line, devices)
    share = (group - 1) / group
    sent = {
      "all-gather": size * share,
      "all-reduce": 2 * size * share,
      "reduce-scatter": size * (group - 1),
      "all-to-all": size * share,
      "collective-permute": size,
    }[kind]
    old = found.get(kind, Moved(kind, 0, 0.0, 0.0))
    n = times[name]
    found[kind] = Moved(kind, old.count + n, old.bytes + n * size, old.sent + n * sent)
  return list(found.values())


def repeated(text):
  """Returns the (computation, line)s of collectives that a chain started in another fusion."""
  started = {(name, match[1]) for name, line in lines(text) if (match := STARTED.search(line))}
  links = {}
  for name, line in lines(text):
    if COLLECTIVE.search(line) and (match := CHAIN.search(line)):
      links.setdefault(match[2], []).append(((name, match[1]), (name, line)))
  return {
    place
    for chain in links.values()
    if any(link in started for link, _ in chain)
    for link, place in chain
    if link not in started
  }


def lines(text):
  """Yields (computation, line) of a program's text."""
  name = None
  for line in text.splitlines():
    header = COMPUTATION.match(line)
    if header:
      name = header[2]
    elif name is not None:
      yield name, line


def repetitions(text):
  """Returns {computation: how often it runs}: a loop's body its known turns, all else once."""
  entry = next(
    match[2] for match in map(COMPUTATION.match, text.splitlines()) if match and match[1]
  )
  ends, upwards = {}, set()
  for name, line in lines(text):
    ends.setdefault(name, []).extend(map(int, BOUND.findall(line)))
    if "direction=LT" in line:
      upwards.add(name)
  calls = {}
  for name, line in lines(text):
    turns = TRIPS.search(line)
    n_turns = int(turns[1]) if turns else 1
    condition = CONDITION.search(line)
    if not turns and condition and condition[1] in upwards and len(ends[condition[1]]) == 1:
      n_turns = ends[condition[1]][0]
    bodies = set(BODY.findall(line))
    called = CALLED.findall(line)
    for branches in BRANCHES.findall(line):
      called += [part.strip().lstrip("%") for part in branches.split(",")]
    for target in called:
      calls.setdefault(name, []).append((target, n_turns if target in bodies else 1))
  times = {}

  def visit(name, n):
    times[name] = times.get(name, 0) + n
    for target, turns in calls.get(name, ()):
      visit(target, n * turns)

  visit(entry, 1)
  return times


def bytes_of(shape, *, started=False, kind=""):
  """Returns the bytes of a result's shape, "f32[8,4]" or a tuple of such.

  The asynchronous start of a collective lists its operands, then its results: the last half
  counts, without the two counters that a permute adds.
  """
  parts = SHAPE.findall(shape)
  if started and len(parts) > 1 and kind != "all-reduce":
    parts = [part for part in parts if part != ("u32", "")]
    parts = parts[len(parts) // 2 :]
  return sum(size(*part) for part in parts)


def size(kind, dimensions):
  """Returns the bytes of an array of a type, "bf16", and dimensions, "8,4"."""
  digits = re.search(r"\d+", kind)
  bits = BITS.get(kind, int(digits[0]) if digits else 8)
  return bits / 8 * math.prod(int(n) for n in dimensions.split(",") if n)


def group_of(line, devices):
  """Returns how many devices take part in a collective."""
  mesh = MESH.search(line)
  if mesh:
    sizes = dict(AXIS.findall(mesh[1]))
    return math.prod(int(part or sizes[axis]) for axis, part in USED.findall(mesh[2]))
  match = GROUP.search(line)
  if match is None:
    return devices
  return len(match[1].split(",")) if match[1] else int(match[2])
