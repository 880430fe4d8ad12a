"""How much of the machine went elsewhere while a bench ran: to other programs, and to the host of a
virtual machine.
"""

import os
import time

# Of the fields of /proc/stat: idle, waiting for a disk; the first eight add up to all time.
IDLE = (3, 4)


def mark():
  """Returns what `share_since` wants, at the beginning; None where the system does not say."""
  try:
    with open("/proc/stat") as file:
      ticks = [int(x) for x in file.readline().split()[1:9]]
  except OSError:
    return None
  taken = sum(x for i, x in enumerate(ticks) if i not in IDLE) / os.sysconf("SC_CLK_TCK")
  return time.monotonic(), taken - sum(os.times()[:4])


def share_since(begun):
  """Returns the share of all cores' time since `begun` that neither this process nor its ended
  children took, or None.
  """
  ended = mark()
  if begun is None or ended is None:
    return None
  return max(0.0, (ended[1] - begun[1]) / max((ended[0] - begun[0]) * os.cpu_count(), 1e-9))
