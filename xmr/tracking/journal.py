"""The journal of a training loop: terms of the steps, where time is spent, the progress line."""

import time

import jax
import numpy as np

from xmr.errors import UserError
from xmr.tracking.alarm import Alarm
from xmr.tracking.progress import progress_line


class Journal:
  """Collects steps without waiting for the device; every few steps it checks and writes them."""

  def __init__(self, writer, *, batch_size, steps_per_epoch, rates, total=0):
    """writer: Writer.  batch_size: captions per step.  steps_per_epoch: int.  rates: learning rate
    of a step.  total: steps of the whole run.
    """
    self.writer, self.rates, self.total = writer, rates, total
    self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
    self.alarm = Alarm()
    self.scores = {}  # shown on the progress line: the last validation, the best so far
    self.first = None  # (step, time) that the time left is computed from, after compilation
    self.restart()

  def restart(self):
    """Forgets what has been written and starts the clock: after a flush, a validation, a
    checkpoint.
    """
    self.pending, self.waited, self.clock = [], 0.0, time.perf_counter()

  def record(self, step, ids, terms, *, waited):
    """Notes a step in flight: text_id [B] of its batch, terms on the device, seconds waited for the
    batch.
    """
    self.pending.append((step, ids, terms))
    self.waited += waited

  def flush(self):
    """Waits for the noted steps, checks them, writes the last.

    Raises:
      UserError: a loss that is not finite.
    """
    if not self.pending:
      return
    values = jax.device_get([terms for _, _, terms in self.pending])
    for (step, ids, _), terms in zip(self.pending, values, strict=True):
      check_finite(step, ids, terms)
    step, count, seconds = self.pending[-1][0], len(self.pending), time.perf_counter() - self.clock
    terms = {name: float(value) for name, value in values[-1].items()}
    epoch, rate = step / self.steps_per_epoch, count * self.batch_size / seconds
    self.writer.scalars(
      step,
      {
        "epoch": epoch,
        **{f"train/{name}": value for name, value in terms.items()},
        "learning_rate": float(self.rates(step - 1)),
        "examples_per_second": rate,
        "seconds/data": self.waited / count,
        "seconds/step": (seconds - self.waited) / count,
      },
    )
    warning = self.alarm.check(step, terms)
    if warning:
      self.writer.say(warning)
    self.writer.progress(
      step,
      progress_line(
        step=step,
        total=self.total,
        epoch=epoch,
        loss=terms["loss"],
        scores=self.scores,
        rate=rate,
        left=self._left(step),
      ),
    )
    self.restart()

  def _left(self, step):
    """Returns the seconds to the last step at the pace so far, including validations and
    checkpoints; None before the pace is known.
    """
    now = time.perf_counter()
    if self.first is None or step <= self.first[0]:
      self.first = self.first or (step, now)
      return None
    return (now - self.first[1]) / (step - self.first[0]) * max(0, self.total - step)


def check_finite(step, ids, terms):
  """Raises UserError for a loss that is not finite, naming the step and its captions."""
  if np.isfinite(terms["loss"]) and np.isfinite(terms["gradient_norm"]):
    return
  named = ", ".join(f"{name} {float(value):.3g}" for name, value in terms.items())
  raise UserError(
    f"step {step} is not finite ({named}); text_id of its batch: {np.asarray(ids).tolist()}; "
    "earlier checkpoints are intact"
  )
