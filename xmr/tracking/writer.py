"""Where a run's numbers go: metrics.jsonl (the truth), TensorBoard, the progress line."""

import json
import pathlib
import sys
import time

import numpy as np
from tqdm import tqdm

from xmr.storage import files


def kept_lines(path, last_step):
  """Returns the complete lines of a metrics.jsonl up to a step; later steps are trained again."""
  return [
    line
    for line, found in files.json_lines(path)
    if isinstance(found.get("step"), int) and found["step"] <= last_step
  ]


class Writer:
  """Writes scalars of one run; in processes other than the first every method does nothing."""

  def __init__(self, workdir, *, step=0, total=0, tensorboard=True, progress=True, active=True):
    """Opens the files of a run.

    Args:
      workdir: folder of the run.
      step: steps done by the checkpoint that this start continues from; later log lines are
        dropped.
      total: steps of the whole run, for the progress line.
      tensorboard, progress: write event files, show a line on standard error.
      active: True in the process that writes.
    """
    self.active = active
    self.bar = self.board = None
    if not active:
      return
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if path.exists():
      files.write_text(path, "".join(line + "\n" for line in kept_lines(path, step)))
    self.file = path.open("a")
    if tensorboard:
      from xmr.tracking.tensorboard import Board

      self.board = Board(pathlib.Path(workdir) / "tensorboard", step=step)
    if progress:
      self.bar = tqdm(
        total=total,
        initial=step,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.5,
        file=sys.stderr,
        bar_format="{desc}",
      )

  def scalars(self, step, values):
    """Writes one line of named numbers at a step, with the time of day in seconds since 1970."""
    if not self.active:
      return
    values = {name: float(value) for name, value in values.items()}
    # null instead of NaN, so that the file stays valid JSON.
    finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
    self.file.write(json.dumps({"step": int(step), "time": round(time.time(), 3), **finite}) + "\n")
    self.file.flush()
    if self.board:
      self.board.scalars(step, values)

  def hparams(self, flat):
    """Shows the config in TensorBoard: as a text, and beside the validation scores of other
    runs.
    """
    if self.active and self.board:
      rows = "\n".join(f"|{key}|`{value}`|" for key, value in flat.items())
      self.board.text(0, "config", f"|field|value|\n|-|-|\n{rows}")
      self.board.hparams(flat, ("val/rsum", "val/i2t/r1", "val/t2i/r1"))

  def image(self, step, name, pixels):
    """Shows an image [H, W, 3] uint8 in TensorBoard."""
    if self.active and self.board:
      self.board.image(step, name, pixels)

  def progress(self, step, text):
    """Moves the progress line to a step."""
    if self.bar is not None:
      self.bar.set_description_str(text, refresh=False)
      self.bar.update(step - self.bar.n)

  def show(self, text):
    """Shows a text instead of the progress line, until the next step is shown."""
    if self.bar is not None:
      self.bar.set_description_str(text)

  def say(self, text):
    """Prints a line above the progress line, on standard error."""
    if self.active:
      tqdm.write(text, file=sys.stderr)

  def close(self):
    """Flushes and closes everything."""
    if not self.active:
      return
    self.file.close()
    if self.board:
      self.board.close()
    if self.bar is not None:
      self.bar.close()
