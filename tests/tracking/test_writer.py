import json
import time

from xmr.tracking.writer import Writer


def lines(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_was_logged_after_the_checkpoint_is_dropped_on_resume(tmp_path):
  writer = Writer(tmp_path, tensorboard=False, progress=False)
  for step in (1, 2, 3):
    writer.scalars(step, {"train/loss": step})
  writer.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "train/lo')  # a line cut by a kill
  writer = Writer(tmp_path, step=2, tensorboard=False, progress=False)
  writer.scalars(3, {"train/loss": 30})
  writer.close()
  assert [(line["step"], line["train/loss"]) for line in lines(tmp_path)] == [
    (1, 1),
    (2, 2),
    (3, 30),
  ]


def test_a_number_that_is_not_finite_is_null_in_json(tmp_path):
  writer = Writer(tmp_path, tensorboard=False, progress=False)
  writer.scalars(1, {"a": float("nan"), "b": 2})
  writer.close()
  (line,) = lines(tmp_path)
  assert abs(line.pop("time") - time.time()) < 60
  assert line == {"step": 1, "a": None, "b": 2.0}


def test_an_inactive_writer_writes_nothing(tmp_path):
  writer = Writer(tmp_path, active=False)
  writer.scalars(1, {"a": 1})
  writer.progress(1, "")
  writer.close()
  assert list(tmp_path.iterdir()) == []
