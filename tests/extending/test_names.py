"""Another name in a section, from a file and from the command line; folders of the version
before."""

import json

import pytest
import small_run

from xmr import checkpoint, main
from xmr.errors import UserError

FILE = """
from xmr.config import base_config


def get_config():
  config = base_config()
  config.loss.margin = 0.3
  config.model.text.dropout = 0.1
  return config
"""


def read(folder, *flags):
  path = folder / "mine.py"
  path.write_text(FILE)
  return main.read(["xmr.main", f"--config={path}", f"--workdir={folder}", *flags])[0]


def test_a_name_by_flag_brings_the_parameters_of_that_loss(tmp_path):
  assert read(tmp_path).loss.margin == 0.3
  loss = read(tmp_path, "--config.loss.name=info_nce").loss
  assert loss.to_dict() == {
    "name": "info_nce",
    "learn": (),
    "temperature": 0.07,
    "bias": 0.0,
    "kind": "dot",
  }
  assert read(tmp_path, "--config.loss.name=max_of_hinges").loss.margin == 0.2
  assert read(tmp_path, "--config.loss.name=imc").loss.margin == 0.3


@pytest.mark.parametrize("first", [True, False])
def test_the_order_of_flags_does_not_count(tmp_path, first):
  flags = ["--config.loss.name=sigmoid", "--config.loss.bias=-5", "--config.loss.learn=('bias',)"]
  loss = read(tmp_path, *(flags if first else reversed(flags))).loss
  assert (loss.name, loss.bias, loss.temperature, loss.learn) == ("sigmoid", -5.0, 0.1, ("bias",))


def test_another_encoder_keeps_what_it_shares(tmp_path):
  flags = ("--config.model.text.hidden=7", "--config.model.text.name=mlp")
  text = read(tmp_path, *flags).model.text
  assert (text.name, text.hidden, text.dropout, text.depth) == ("mlp", 7, 0.1, 2)


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--config.loss.temperature=1"], "loss imc has no parameter temperature; expected some of"),
    (
      ["--config.loss.name=sigmoid", "--config.loss.margin=1"],
      "loss sigmoid has no parameter margin; expected some of learn, temperature, bias, kind",
    ),
    (["--config.loss.name=triplet"], "loss.name is 'triplet'; expected one of aligned_full"),
    (["--config.model.image.hidden=3"], "config.model.image: convnet has no field hidden"),
    (["--config.model.image.name=bert"], "config.model.image.name is 'bert'; expected one of"),
  ],
)
def test_a_parameter_of_another_loss_is_refused_with_the_losss_own(tmp_path, flags, message):
  with pytest.raises(UserError) as error:
    read(tmp_path, *flags)
  assert message in str(error.value)


@pytest.mark.slow
def test_a_run_of_the_version_before_goes_on(tmp_path, monkeypatch):
  """It wrote None for the defaults of a loss, and the fields of all encoders."""
  monkeypatch.chdir(small_run.ROOT)
  data = small_run.write_data(tmp_path / "small")

  def train(steps, *flags):
    argv = small_run.arguments(data, tmp_path / "run", **{"steps": steps, "evaluate.steps": 2})
    main.main(["xmr.main", *argv, *flags])

  train(2)
  path = tmp_path / "run" / "config.json"
  fields = json.loads(path.read_text())
  assert fields["loss.margin"] == 0.2 and None not in fields.values()
  names = ("margin", "reduce", "kind", "weight", "distance", "temperature", "bias", "threshold")
  fields = {key: value for key, value in fields.items() if not key.startswith("loss.")}
  fields |= {f"loss.{name}": None for name in names} | {"loss.name": "max_of_hinges"}
  fields |= {"model.text.word_dim": 300, "model.text.readout": "last", "model.image.remat": False}
  for new in ("recipe", "data.columns", "vocabulary.extend"):
    del fields[new]
  path.write_text(json.dumps(fields))
  # A checkpoint of that version holds the same config.
  record = checkpoint.record
  monkeypatch.setattr(
    checkpoint, "record", lambda folder: {**record(folder), "config": json.loads(path.read_text())}
  )
  train(4)
  assert small_run.steps_logged(tmp_path / "run")[-1] == 4
  assert json.loads(path.read_text())["loss.margin"] == 0.2
  path.write_text(json.dumps(fields | {"loss.margin": 0.5}))
  with pytest.raises(SystemExit):
    train(6)
  path.write_text(json.dumps(fields | {"loss.sharpness": 0.5}))
  with pytest.raises(SystemExit):
    train(6)
