"""The warning that a model has collapsed."""


class Alarm:
  """Warns once that a run has collapsed: one item is the hardest negative of most queries, several
  logs in a row.

  A collapsed model scores all pairs alike, its loss stays at 2 * margin * batch, and no gradient
  changes that.
  """

  def __init__(self, *, share=0.5, patience=5):
    """share: of queries with the same hardest negative that counts as collapsed.  patience: logs in
    a row.
    """
    self.share, self.patience, self.seen = share, patience, 0

  def check(self, step, terms):
    """Returns the warning for this step's terms, or None."""
    self.seen = self.seen + 1 if terms.get("same_hardest", 0.0) > self.share else 0
    if self.seen != self.patience:
      return None
    return (
      f"warning: step {step}: one item is the hardest negative of {terms['same_hardest']:.0%} of "
      "the queries; the model has "
      "collapsed. Warm up with all negatives (config.warmup.epochs=2), lower the learning rate, "
      "or enlarge the batch."
    )
