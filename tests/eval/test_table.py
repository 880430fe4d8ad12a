"""One list of metrics: a new one takes a function and a row, and shows in runs and for files."""

import json

import numpy as np
import pytest
import small_run

from xmr import train
from xmr.config import base_config, validate
from xmr.errors import UserError
from xmr.eval import table
from xmr.eval.__main__ import define
from xmr.eval.__main__ import main as eval_main
from xmr.fields import field

METRIC = '''
"""Mean similarity of pairs, and of how many captions it is."""

import numpy as np


def score(image, text, truth, *, kind, closeness, power):
  """{"close/mean": mean of (similarity of a caption with its image) ** power}."""
  assert closeness and kind == "cosine"
  image, text = (np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
  own = (image[truth.image_of_text] * text).sum(axis=1) ** power
  return {"close/mean": own.mean(), "queries/close": own}


def check(truth, *, kind, closeness, power):
  from xmr.errors import UserError

  if len(truth.texts) < power:
    raise UserError(f"power is {power}; expected at most {len(truth.texts)}")
'''


@pytest.fixture
def closeness(tmp_path, monkeypatch):
  """A metric in a folder of its own, and its row in the table."""
  (tmp_path / "new_metric.py").write_text(METRIC)
  monkeypatch.syspath_prepend(str(tmp_path))
  row = table.Evaluator(
    "new_metric.score",
    options={
      "closeness": field(False, "mean similarity of pairs", resumable=True),
      "power": field(1, "of the similarity", at_least=1, at_most=9, resumable=True),
    },
    needs={"closeness": ("texts",)},
    check="new_metric.check",
    kinds=("cosine",),
  )
  monkeypatch.setitem(table.EVALUATORS, "closeness", row)


def expected(image, text, owner, power):
  image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
  return float(((image[owner] * text).sum(axis=1) ** power).mean())


def test_a_new_metric_needs_a_function_and_a_row_for_files(closeness, tmp_path, capsys):
  rng = np.random.default_rng(0)
  owner = np.arange(12) // 2
  image, text = rng.normal(size=(6, 4)), rng.normal(size=(12, 4))
  for name, array in (("image", image), ("text", text), ("image_of_text", owner)):
    np.save(tmp_path / f"{name}.npy", array)
  (tmp_path / "texts.json").write_text(json.dumps([f"caption {t}" for t in range(12)]))
  files = [f"--{name}={tmp_path}/{name}.npy" for name in ("image", "text", "image_of_text")]
  command = ["xmr.eval", *files, f"--captions={tmp_path}/texts.json", "--nograded", "--power=3"]
  eval_main([*command, "--closeness", f"--out={tmp_path}"])
  found = json.loads((tmp_path / "results.json").read_text())["metrics"]
  assert found["close/mean"] == pytest.approx(expected(image, text, owner, 3), rel=1e-5)
  assert f"{found['close/mean']:.4f}" in capsys.readouterr().out
  for flag, message in (
    ("--power=10", "--power is 10; expected from 1 to 9"),
    ("--kind=dot", "--closeness knows cosine similarity; found dot"),
  ):
    with pytest.raises(SystemExit):
      eval_main([*command, "--closeness", flag])
    assert message in capsys.readouterr().err
  eval_main(["xmr.eval", *files])
  assert "close/mean" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_new_metric_needs_a_function_and_a_row_for_runs(closeness, tmp_path):
  data = small_run.write_data(tmp_path / "small")
  config = base_config()
  fields = small_run.SMALL | {"data.image": "features", "data.text": "features"}
  fields |= {"data.dir": str(data), "data.cache_dir": str(tmp_path / "cache")}
  fields |= {"evaluate.closeness": True, "evaluate.power": 2, "steps": 2, "evaluate.steps": 2}
  config.update_from_flattened_dict(fields)
  train.train_and_evaluate(config, tmp_path / "run")
  found = json.loads((tmp_path / "run/results.json").read_text())["metrics"]
  assert 0 <= found["close/mean"] <= 1
  with np.load(tmp_path / "run/queries.npz") as queries:
    assert queries["close"].shape == (20,)
    assert queries["close"].mean() == pytest.approx(found["close/mean"])


def test_config_and_flags_have_the_same_options_with_the_same_defaults():
  config, flags = base_config(), define()
  switches = {name for row in table.EVALUATORS.values() for name in row.needs}
  for name, option in table.options().items():
    assert config.evaluate[name] == option.default
    if not (name in switches and option.default is False):
      assert flags[name].value == option.default, name
    else:
      assert flags[name].value is None, name


def test_every_row_names_functions_that_are_there_and_take_its_options():
  import inspect

  from xmr.fields import resolve

  for name, row in table.EVALUATORS.items():
    for function in filter(None, (row.function, row.check)):
      parameters = inspect.signature(resolve(function)).parameters
      taken = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
      assert taken or set(row.options) <= set(parameters), name
    assert set(row.needs) | set(row.files) <= set(row.options), name


@pytest.mark.parametrize(
  "name, value, message",
  [
    ("folds", 0, "config.evaluate.folds is 0; expected from 1 to"),
    ("k", -1, "config.evaluate.k is -1"),
    ("alpha", 1.5, "config.evaluate.alpha is 1.5; expected from 0 to 1"),
    ("form", "other", "expected one of released, standard"),
  ],
)
def test_a_config_is_checked_by_the_rows(name, value, message):
  config = base_config()
  config.evaluate[name] = value
  with pytest.raises(UserError, match=message):
    validate(config)


def test_two_rows_cannot_give_one_name(closeness, monkeypatch):
  monkeypatch.setitem(table.EVALUATORS, "again", table.EVALUATORS["recall"])
  from xmr.eval.truth import GroundTruth

  rows = np.eye(3, dtype=np.float32)
  values = {name: option.default for name, option in table.options().items()}
  with pytest.raises(ValueError, match="evaluator again returns i2t/meanr once more"):
    table.evaluate(rows, rows, GroundTruth(np.arange(3)), values, kind="dot")


def test_a_shortlist_of_pooled_tokens_is_refused_before_training():
  from xmr.eval.truth import GroundTruth

  values = {name: each.default for name, each in table.options().items()} | {"shortlist": 5}
  truth = GroundTruth(np.arange(20))
  table.check(truth, values, kind="MrSw")
  with pytest.raises(UserError, match="evaluate.shortlist knows MrSw.* similarity; found pooled"):
    table.check(truth, values, kind="pooled")
