"""One contender's process: opens what it is told, and runs it when asked; requests and replies are
lines of JSON.

Its one argument, where given, is the number of cores that it may use.
"""

import ctypes
import gc
import importlib
import json
import math
import os
import sys
import time
import traceback

OPTIONAL = ("torch", "faiss")
ENOUGH = 0.25  # seconds of calls in one round, at least
MOST_CALLS = 50


def main():
  """Serves requests on standard input until it ends; standard output is kept for replies, so
  libraries print to stderr.
  """
  if sys.argv[1:]:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
  replies = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)
  opened = {}
  for line in sys.stdin:
    request = json.loads(line)
    try:
      if "open" in request:
        opened = {}
        gc.collect()
        opened, reply = open_case(**request["open"])
      else:
        reply = {"seconds": seconds(opened["run"], request["calls"])}
    except ModuleNotFoundError as error:
      reply = (
        {"missing": str(error)}
        if (error.name or "").split(".")[0] in OPTIONAL
        else {"error": traceback.format_exc()}
      )
    except Exception:
      reply = {"error": traceback.format_exc()}
    replies.write(json.dumps(reply) + "\n")


def open_case(function, arguments):
  """Sets a contender up and warms it; returns (what it returned, reply).

  The reply holds "answer", "facts", "first_seconds" (with compilation), "extra_mb" and "calls" (for
  one round).
  """
  module, name = function.split(":")
  opened = getattr(importlib.import_module(module), name)(**arguments)
  (first,) = seconds(opened["run"], 1)
  extra, (again,) = extra_memory(opened["run"])
  reply = {
    "answer": answer_of(opened),
    "facts": opened.get("facts", {}),
    "first_seconds": first,
    "extra_mb": extra,
    "calls": max(1, min(MOST_CALLS, math.ceil(ENOUGH / max(again, 1e-9)))),
  }
  return opened, reply


def answer_of(opened):
  """Returns what contenders must agree in, as a flat list, or None."""
  if "answer" not in opened:
    return None
  import numpy as np

  return np.ravel(np.asarray(opened["answer"](), np.float64)).tolist()


def seconds(run, calls):
  """Returns the time of each of some calls; a call that returns a float has measured itself.

  On a single core it is the processor's time, which other programs do not change.
  """
  clock = time.process_time if len(os.sched_getaffinity(0)) == 1 else time.perf_counter
  times = []
  for _ in range(calls):
    begun = clock()
    measured = run()
    times.append(measured if isinstance(measured, float) else clock() - begun)
  return times


def extra_memory(run):
  """Returns (MB by which one call raises the resident set at its peak, None where the system does
  not say; its time).
  """
  try:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
      file.write("5")  # The peak begins anew.
    before = resident("VmRSS")
  except (OSError, AttributeError):
    return None, seconds(run, 1)
  taken = seconds(run, 1)
  return round((resident("VmHWM") - before) / 1024, 1), taken


def resident(field):
  """Returns a field of this process's memory in KiB."""
  with open("/proc/self/status") as file:
    return next(int(line.split()[1]) for line in file if line.startswith(field))


if __name__ == "__main__":
  main()
