"""A trace of some training steps."""

import pathlib

import jax


class Profiler:
  """Traces a range of steps into <workdir>/profile, for TensorBoard's or Perfetto's viewer."""

  def __init__(self, section, workdir, *, start):
    """section: config.profile.  workdir: of the run.  start: steps already done."""
    self.first = start + section.start
    self.last = self.first + section.steps
    self.folder = pathlib.Path(workdir) / "profile"
    self.active = False

  def step(self, done, state):
    """Starts or ends the trace; called with the number of steps done and what the last one
    returned.
    """
    if self.first < self.last and done == self.first:
      jax.profiler.start_trace(str(self.folder))
      self.active = True
    elif self.active and done >= self.last:
      jax.block_until_ready(state)
      self.close()

  def close(self):
    """Ends a trace in progress."""
    if self.active:
      jax.profiler.stop_trace()
      self.active = False
