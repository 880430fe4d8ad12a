import pytest

from xmr import config as config_lib
from xmr.errors import UserError


def test_the_default_config_is_valid_and_locked():
  config = config_lib.base_config()
  config_lib.validate(config)
  with pytest.raises(AttributeError):
    config.epohcs = 3


@pytest.mark.parametrize(
  "key, value, found",
  [
    ("match", "images", "config.match is 'images'; expected one of image_id, pair"),
    ("batch_size", 0, "config.batch_size is 0; expected more than 0"),
    ("epochs", -1.0, "config.epochs is -1.0; expected 0 or more"),
    ("model.text.readout", "first", "config.model.text.readout is 'first'"),
    ("model.text.dropout", 1.0, "config.model.text.dropout is 1.0; expected from 0 to below 1"),
    ("data.image", "features", "config.model.image.name is 'convnet'; expected linear, mlp"),
    ("model.text.name", "mlp", "config.model.text.name is 'mlp'; expected an encoder of words"),
    ("optimizer.multipliers", (("(", 1.0),), "no regular expression"),
  ],
)
def test_a_wrong_value_is_named_with_what_was_expected(key, value, found):
  config = config_lib.base_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=None) as error:
    config_lib.validate(config)
  assert found in str(error.value)


def test_features_need_a_file():
  config = config_lib.base_config()
  config.update_from_flattened_dict({"data.image": "features", "model.image.name": "linear"})
  with pytest.raises(UserError, match="config.data.image_features names no .npy file"):
    config_lib.validate(config)


def test_a_duration_has_one_unit():
  config = config_lib.base_config()
  assert config_lib.in_steps(config, 234, name="config.") == 30 * 234
  config.steps = 5
  with pytest.raises(UserError, match="one of them must be 0"):
    config_lib.in_steps(config, 234, name="config.")
  config.epochs = 0.0
  assert config_lib.in_steps(config, 234, name="config.") == 5
  config.steps = 0
  with pytest.raises(UserError, match="both 0"):
    config_lib.in_steps(config, 234, name="config.")
  assert config_lib.in_steps(config, 234, name="config.", optional=True) == 0


def test_only_what_moves_no_done_step_may_change_on_resume():
  old = config_lib.flat(config_lib.base_config())
  assert (
    config_lib.differences(old, {**old, "epochs": 40.0, "data.workers": 3, "log.steps": 1}) == []
  )
  assert config_lib.differences(old, {**old, "seed": 1, "loss.margin": 0.3}) == [
    "config.loss.margin: None -> 0.3",
    "config.seed: 0 -> 1",
  ]
  assert config_lib.differences(old, {**old, "optimizer.schedule": "cosine", "epochs": 40.0}) == [
    "config.epochs: 30.0 -> 40.0",
    "config.optimizer.schedule: 'step' -> 'cosine'",
  ]


def test_a_number_that_is_not_finite_is_named():
  config = config_lib.base_config()
  config.loss.margin = float("nan")
  with pytest.raises(UserError, match="config.loss.margin is nan; expected a finite number"):
    config_lib.validate(config)
