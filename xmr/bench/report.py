"""What comes out of a bench: the table, the JSON, and on what machine and with which versions."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys

BUSY = 0.1  # share of the machine that may go elsewhere
BEST = 1.02  # a share of the limit above this one says that the limit is wrong
PACKAGES = (
  "xmr",
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "numpy",
  "scipy",
  "rapidfuzz",
  "torch",
  "faiss-cpu",
)


def document(name, results, *, quick, rounds, cores=None, others=None, summary=None):
  """Returns all that the JSON holds: how it was run, when, on what, with which versions, and
  "cases" of `runner.run`.

  others: share of the machine that went elsewhere meanwhile, see `others`.
  """
  return {
    "bench": name,
    "quick": quick,
    "rounds": rounds,
    "cores": cores,
    "command": shlex.join(["python", *sys.orig_argv[1:]]),
    "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "machine": machine() | {"others": None if others is None else round(others, 3)},
    "versions": versions(),
    "cases": results,
    "summary": summary or [],
  }


def machine():
  """Returns what the machine is: processor, cores that this process may use, memory."""
  model = platform.processor() or platform.machine()
  try:
    with open("/proc/cpuinfo") as file:
      model = next(
        (line.partition(":")[2].strip() for line in file if line.startswith("model name")), model
      )
  except OSError:
    pass
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
  return {
    "processor": model,
    "cores": cores,
    "memory_gb": round(memory, 1),
    "system": f"{platform.system()} {platform.machine()}",
  }


def versions():
  """Returns the versions of Python and of the packages that count, None where one is missing."""
  found: dict[str, str | None] = {"python": platform.python_version()}
  for package in PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = None
  return found


def table(document):
  """Returns the table as text: one line per case and contender, then goals, then who is missing."""
  rows: list[tuple[str, ...]] = [
    ("case", "contender", "time", "ratio", "of fastest", "of limit", "extra MB", "")
  ]
  for result in document["cases"]:
    for i, (name, figures) in enumerate(result["contenders"].items()):
      ours = name not in result["ratios"]
      facts = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in figures["facts"].items()
      )
      rate = f"{result['rate']:,.0f} {result['unit']}/s" if ours and result["rate"] else ""
      rows.append(
        (
          "" if i else result["name"],
          name,
          duration(figures["seconds"]),
          *(
            ("", "")
            if ours
            else (f"{result[key][name]:.2f}" for key in ("ratios", "ratios_of_fastest"))
          ),
          f"{result['share']:.0%}" if ours and result["share"] is not None else "",
          "" if figures["extra_mb"] is None else f"{figures['extra_mb']:.0f}",
          "; ".join(part for part in (rate, facts) if part),
        )
      )
  lines = aligned(rows)
  lines += [line for line in document["summary"]]
  for result in document["cases"]:
    for goal in result["goals"]:
      if goal["found"] is not None:
        lines.append(
          f"{'met   ' if goal['met'] else 'MISSED'} {result['name']}: {goal['goal']}, found "
          f"{goal['found']:.3g}"
        )
    if result["share"] is not None and result["share"] > BEST and not document["quick"]:
      lines.append(
        f"WRONG LIMIT {result['name']}: {result['share']:.0%} of it; the probes did not find the "
        "machine's best, so shares of the limit are too high"
      )
  for name, why in sorted(
    {item for result in document["cases"] for item in result["missing"].items()}
  ):
    lines.append(f"without {name}: {why}; pip install -e '.[bench]'")
  probes = [result["probes"] for result in document["cases"]]
  if probes:
    gemm, copy = (
      sorted(p[key] for p in probes)[len(probes) // 2] for key in ("gemm_gflops", "copy_gb")
    )
    lines.append(f"probes: {gemm:.0f} GFLOP/s float32, {copy:.1f} GB/s copied (read + written)")
  known, cores = document["machine"], document["cores"]
  lines.append(
    f"{known['processor']}, {cores or known['cores']} cores; ratio: its time over ours, in "
    f"{'processor time' if cores == 1 else 'time'} per round"
  )
  if known["others"] is not None:
    lines.append(
      f"meanwhile {known['others']:.0%} of the machine's time went to other programs or its host"
    )
    if known["others"] > BUSY and cores != 1:
      lines.append(
        "that is too much: ratios are not to be trusted; --cores=1 counts processor time"
      )
  return "\n".join(lines)


def duration(seconds):
  """Returns a time with its unit."""
  for unit, factor in (("s", 1), ("ms", 1e3)):
    if seconds * factor >= 1:
      return f"{seconds * factor:.3g} {unit}"
  return f"{seconds * 1e6:.3g} us"


def aligned(rows):
  """Returns rows of cells as lines with straight columns."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return [
    "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]
