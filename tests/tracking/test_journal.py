import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from xmr.errors import UserError
from xmr.tracking.alarm import Alarm
from xmr.tracking.journal import Journal, check_finite
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


def test_the_progress_line_has_epoch_terms_rsum_and_best(tmp_path):
  lines = []
  writer = Writer(tmp_path, tensorboard=False, progress=False)
  writer.progress = lambda step, text: lines.append((step, text))
  journal = Journal(writer, batch_size=2, steps_per_epoch=10, rates=lambda step: 0.1)
  terms = {
    "i2t": jnp.float32(1),
    "loss": jnp.float32(3),
    "t2i": jnp.float32(2),
    "gradient_norm": jnp.float32(1),
  }
  for scores in ({}, {"best": 210.0}, {"rsum": 200.0, "best": 210.0}):
    journal.scores = scores
    journal.record(5, np.array([0]), terms, waited=0.0)
    journal.flush()
  writer.close()
  assert [step for step, _ in lines] == [5, 5, 5]
  begin, rate = "epoch 0.5 loss 3 i2t 1 t2i 2", r" \d+/s"
  for (_, text), scores in zip(lines, ("", " best 210", " rsum 200 best 210"), strict=True):
    assert re.fullmatch(begin + scores + rate, text)


def test_the_bar_shows_steps_and_the_time_left(tmp_path, capsys):
  writer = Writer(tmp_path, tensorboard=False, total=40, step=10)
  writer.progress(20, "epoch 1.0 loss 2")
  writer.close()
  shown = capsys.readouterr().err.split("\r")[-1]
  assert re.search(r" 50%\|.*\| 20/40 \[\d\d:\d\d<.*\] epoch 1.0 loss 2", shown), shown
