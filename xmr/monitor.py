"""What watches a training run: the collapse alarm and the profiler."""

import pathlib

import jax


class Alarm:
  """Says once that a run has collapsed: one item is the hardest negative of most queries, log after log.

  A collapsed model scores every pair alike, the loss stands at 2 * margin * batch, and no gradient leads out.
  """

  def __init__(self, *, share=0.5, patience=5):
    """share: of queries with the same hardest negative that counts as collapsed.  patience: logs in a row."""
    self.share, self.patience, self.seen = share, patience, 0

  def check(self, step, terms):
    """Returns the warning for this step's terms, or None."""
    self.seen = self.seen + 1 if terms.get("same_hardest", 0.0) > self.share else 0
    if self.seen != self.patience:
      return None
    return (
      f"warning: step {step}: one item is the hardest negative of {terms['same_hardest']:.0%} of the queries; the model has "
      "collapsed. Warm up with all negatives (config.warmup.epochs=2), lower the learning rate, or enlarge the batch."
    )


class Profiler:
  """Traces a range of steps into <workdir>/profile, for TensorBoard's or Perfetto's viewer."""

  def __init__(self, section, workdir, *, start):
    """section: config.profile.  workdir: of the run.  start: steps already done."""
    self.first = start + section.start
    self.last = self.first + section.steps
    self.folder = pathlib.Path(workdir) / "profile"
    self.active = False

  def step(self, done, state):
    """Starts or ends the trace; called with the number of steps done and what the last one returned."""
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
