"""TensorBoard's event files, written by the thread that logs, so that a full disk raises its error
there.

tensorboardX makes the messages. Its own writer passes them to a thread, and if that thread dies,
training waits for ever.
"""

import pathlib
import socket
import struct
import time
from typing import Any

from tensorboardX import summary as summaries
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

messages: Any = event_pb2  # Its classes are made when it is imported.


class Board:
  """One event file of a run."""

  def __init__(self, folder, *, step=0):
    """Opens a file in a folder; TensorBoard then hides steps after `step` in older files."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Unbuffered: nothing is left to write when the file is closed.
    self.file = (folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}").open(
      "ab", buffering=0
    )
    self._write(step=0, file_version="brain.Event:2")
    self._write(step=step + 1, session_log=messages.SessionLog(status=messages.SessionLog.START))

  def _write(self, **fields):
    message = messages.Event(wall_time=time.time(), **fields).SerializeToString()
    length = struct.pack("<Q", len(message))
    record = (
      length
      + struct.pack("<I", masked_crc32c(length))
      + message
      + struct.pack("<I", masked_crc32c(message))
    )
    while record:
      record = record[self.file.write(record) :]

  def scalars(self, step, values):
    """Writes {name: float}."""
    for name, value in values.items():
      self._write(step=step, summary=summaries.scalar(name, value))

  def image(self, step, name, pixels):
    """Writes an image [H, W, 3] uint8."""
    self._write(step=step, summary=summaries.image(name, pixels, dataformats="HWC"))

  def text(self, step, name, markdown):
    """Writes a text."""
    self._write(step=step, summary=summaries.text(name, markdown))

  def hparams(self, flat, metrics):
    """Writes {field: value} for the HPARAMS tab, beside scalars of these names."""
    shown = {
      key: value if isinstance(value, bool | int | float | str) else str(value)
      for key, value in flat.items()
    }
    begin, session, _ = summaries.hparams(shown, dict.fromkeys(metrics, 0))
    self._write(step=0, summary=begin)
    self._write(step=0, summary=session)

  def close(self):
    """Closes the file."""
    self.file.close()
