import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2, plugin_hparams_pb2
from tensorboardX.record_writer import masked_crc32c

from xmr.tracking.tensorboard import Board


def events(folder):
  """Reads all event files of a folder."""
  found = []
  for path in sorted(folder.iterdir()):
    raw = path.read_bytes()
    while raw:
      (length,) = struct.unpack("<Q", raw[:8])
      assert struct.unpack("<I", raw[8:12])[0] == masked_crc32c(raw[:8])
      assert struct.unpack("<I", raw[12 + length : 16 + length])[0] == masked_crc32c(
        raw[12 : 12 + length]
      )
      found.append(event_pb2.Event.FromString(raw[12 : 12 + length]))
      raw = raw[16 + length :]
  return found


def test_what_is_written_is_there_at_once_and_complete(tmp_path):
  board = Board(tmp_path, step=4)
  board.scalars(5, {"train/loss": 2.5, "val/rsum": float("nan")})
  board.image(6, "val/retrieved", np.full((4, 5, 3), 200, np.uint8))
  board.text(0, "config", "|seed|`1`|")
  board.hparams(
    {"seed": 1, "loss.name": "imc", "data.scenes": None, "picture": True}, ("val/rsum",)
  )
  version, start, *written = events(tmp_path)
  assert version.file_version == "brain.Event:2"
  assert start.step == 5 and start.session_log.status == event_pb2.SessionLog.START
  values = [(event.step, value.tag, value) for event in written for value in event.summary.value]
  assert [(step, tag) for step, tag, _ in values] == [
    (5, "train/loss"),
    (5, "val/rsum"),
    (6, "val/retrieved"),
    (0, "config/text_summary"),
    (0, "_hparams_/experiment"),
    (0, "_hparams_/session_start_info"),
  ]
  assert values[0][2].simple_value == 2.5
  assert (values[2][2].image.height, values[2][2].image.width) == (4, 5)
  plugin = plugin_hparams_pb2.HParamsPluginData.FromString(
    values[5][2].metadata.plugin_data.content
  )
  shown = plugin.session_start_info.hparams
  assert (
    shown["seed"].number_value == 1
    and shown["loss.name"].string_value == "imc"
    and shown["picture"].bool_value
  )
  board.close()


def test_a_full_disk_is_an_error_of_the_line_that_writes(small_disk):
  board = Board(small_disk / "tensorboard")
  small_disk.fill(leave=4096)
  with pytest.raises(OSError, match="No space left on device"):
    for step in range(1000):
      board.scalars(step, {"loss": step})
  board.close()
