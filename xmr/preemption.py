"""A run that is asked to stop (Ctrl-C, SIGTERM) finishes its step and saves a checkpoint."""

import signal

import jax
import numpy as np
from jax.experimental import multihost_utils

from xmr.terminal import interrupts


class Stop:
  """Context in which the first SIGINT or SIGTERM only sets a flag; a second SIGINT ends the process
  at once.
  """

  def __init__(self, *, every=10):
    """every: steps between two votes, in which several processes agree on the step to stop at."""
    self.every = every
    self.signal = None

  def __enter__(self):
    interrupts.check()
    self.old = {
      number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
    }
    return self

  def __exit__(self, *_):
    for number, handler in self.old.items():
      signal.signal(number, handler)

  def _note(self, number, _):
    self.signal = signal.Signals(number).name
    signal.signal(signal.SIGINT, interrupts.at_once)

  @property
  def reason(self):
    """What asked for the stop."""
    return self.signal or "another process"

  def wanted(self, step):
    """Returns whether to stop after this step; all processes return the same."""
    if jax.process_count() == 1:
      return self.signal is not None
    if step % self.every:
      return False
    return bool(np.any(multihost_utils.process_allgather(np.array(self.signal is not None))))
