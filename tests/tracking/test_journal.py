import json
import re
import threading
import types

import jax.numpy as jnp
import numpy as np
import pytest

from xmr.errors import UserError
from xmr.tracking import progress
from xmr.tracking.alarm import Alarm
from xmr.tracking.journal import Journal, check_finite
from xmr.tracking.progress import compiling, duration, progress_line
from xmr.tracking.writer import Writer


def test_a_loss_that_is_not_finite_names_the_step_and_its_captions():
  terms = {"loss": np.float32("nan"), "gradient_norm": np.float32(1), "i2t": np.float32(3)}
  with pytest.raises(
    UserError, match=r"step 7 is not finite .*loss nan.*text_id of its batch: \[4, 9\]"
  ):
    check_finite(7, np.array([4, 9]), terms)


def test_a_step_before_the_last_is_checked_too(tmp_path):
  writer = Writer(tmp_path, tensorboard=False, progress=False)
  journal = Journal(writer, batch_size=2, steps_per_epoch=10, rates=lambda step: 0.1)
  for step, loss in ((1, 1.0), (2, float("inf")), (3, 1.0)):
    journal.record(
      step,
      np.array([step]),
      {"loss": jnp.float32(loss), "gradient_norm": jnp.float32(1)},
      waited=0.0,
    )
  with pytest.raises(UserError, match="step 2 is not finite"):
    journal.flush()
  writer.close()


def test_a_flush_writes_the_last_step_with_rate_and_seconds(tmp_path):
  writer = Writer(tmp_path, tensorboard=False, progress=False)
  journal = Journal(writer, batch_size=2, steps_per_epoch=10, rates=lambda step: 0.1 * step)
  for step in (1, 2):
    journal.record(
      step, np.array([0]), {"loss": jnp.float32(step), "gradient_norm": jnp.float32(1)}, waited=0.25
    )
  journal.flush()
  journal.flush()
  writer.close()
  (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert (line["step"], line["epoch"], line["train/loss"]) == (2, 0.2, 2.0)
  assert line["learning_rate"] == pytest.approx(0.1)
  assert line["seconds/data"] == pytest.approx(0.25)


def test_the_alarm_rings_once_after_patience_logs_in_a_row():
  alarm = Alarm(share=0.5, patience=2)
  shares = [0.9, 0.1, 0.9, 0.9, 0.9]
  rung = [bool(alarm.check(step, {"same_hardest": share})) for step, share in enumerate(shares)]
  assert rung == [False, False, False, True, False]
  assert Alarm().check(0, {"loss": 1.0}) is None


def test_the_progress_line_has_epoch_loss_rsum_best_rate_and_time_left(tmp_path):
  lines = []
  writer = Writer(tmp_path, tensorboard=False, progress=False)
  writer.progress = lambda step, text: lines.append(text)
  journal = Journal(writer, batch_size=2, steps_per_epoch=10, rates=lambda step: 0.1, total=20)
  terms = {"i2t": jnp.float32(1), "loss": jnp.float32(3), "gradient_norm": jnp.float32(1)}
  for step, scores in ((5, {}), (10, {"best": 210.0}), (15, {"rsum": 200.0, "best": 210.0})):
    journal.scores = scores
    journal.record(step, np.array([0]), terms, waited=0.0)
    journal.flush()
  writer.close()
  first, second, third = lines
  assert re.fullmatch(r"25%  epoch 0.5  loss 3\.000  [\d,]+ captions/s", first)
  assert re.fullmatch(
    r"50%  epoch 1.0  loss 3\.000  best 210\.0  [\d,]+ captions/s  \d+s left", second
  )
  assert "rsum 200.0  best 210.0" in third
  # Terms of the loss are in metrics.jsonl, where no other i2t has their name.
  assert "train/i2t" in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("rate", [3.0, 339.4, 123456.7])
@pytest.mark.parametrize("left", [None, 5, 3599, 86399, 9 * 86400])
@pytest.mark.parametrize("loss", [3.0, 1.2345e-7])
def test_the_progress_line_fits_eighty_columns_whole(rate, left, loss):
  scores = {"rsum": 437.94, "best": 441.25}
  line = progress_line(
    step=98765, total=99999, epoch=1234.5, loss=loss, scores=scores, rate=rate, left=left
  )
  assert len(line) < 80
  assert line.startswith("98%") and "rsum 437.9" in line and "best 441.2" in line
  assert f" {rate:,.0f}" in line and "/s" in line and (left is None or line.endswith(" left"))


def test_durations_have_two_units_at_most():
  found = [duration(x) for x in (0, 59.4, 60, 725, 3600, 12000, 86400 * 2 + 7 * 3600)]
  assert found == ["0s", "59s", "1m00s", "12m05s", "1h00m", "3h20m", "2d07h"]


def test_compiling_is_announced_and_the_next_time_estimated(tmp_path, monkeypatch):
  said, shown, ticked, clock = [], [], threading.Event(), 0.0

  def show(text):
    shown.append(text)
    ticked.set()

  monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: clock))
  writer = types.SimpleNamespace(active=True, say=said.append, show=show)
  for seconds in (0.7, 0.0):
    with compiling(writer, "a step", key={"dim": 8}, cache_dir=tmp_path):
      clock += seconds
      # However busy the machine is: the line of the first has been shown.
      assert ticked.wait(120)
  assert (
    said[0] == "compiling a step (first time here)" and said[2] == "compiling a step (about 1 s)"
  )
  assert said[1] == "compiled a step in 0.7 s"
  assert re.fullmatch(r"compiling a step \(first time here\): [01] s", shown[0])


def test_the_progress_line_is_shown_whole(tmp_path, capsys):
  writer = Writer(tmp_path, tensorboard=False, total=40, step=10)
  writer.progress(20, "50%  epoch 1.0  loss 2")
  writer.close()
  shown = capsys.readouterr().err.split("\r")[-1]
  assert "50%  epoch 1.0  loss 2" in shown, shown
