import pytest

from xmr import config as config_lib
from xmr import tasks
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
    ("batch_size", 0, "config.batch_size is 0; expected from 1 to 16,777,216"),
    ("epochs", -1.0, "config.epochs is -1.0; expected from 0 to 1,000,000"),
    ("model.text.readout", "first", "config.model.text.readout is 'first'"),
    ("model.text.dropout", 1.0, "config.model.text.dropout is 1.0; expected from 0 to below 1"),
    ("data.image", "features", "config.model.image.name is 'convnet'; expected linear, mlp"),
    (
      "model.text.name",
      "mlp",
      "config.model.text.name is 'mlp'; expected lstm, bilstm, gru, bigru",
    ),
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


@pytest.mark.parametrize(
  "key, value, found",
  [
    ("optimizer.b1", 2.0, "config.optimizer.b1 is 2.0; expected from 0 to below 1"),
    ("optimizer.decay_epochs", 0.0, "config.optimizer.decay_epochs is 0.0; expected more than 0"),
    ("optimizer.decay_epochs", -3.0, "config.optimizer.decay_epochs is -3.0"),
    ("evaluate.folds", -5, "config.evaluate.folds is -5; expected from 1 to"),
    ("epochs", 1e300, "config.epochs is 1e+300; expected from 0 to 1,000,000"),
    ("data.min_area", 2.0, "config.data.min_area is 2.0; expected more than 0, at most 1"),
    ("seed", 2**64, "config.seed is 18446744073709551616; expected from 0 to 4,294,967,295"),
    ("seed", -1, "config.seed is -1"),
    ("model.dim", 10**12, "config.model.dim is 1000000000000; expected from 1 to 65,536"),
    ("data.image_size", 10**9, "config.data.image_size is 1000000000; expected from 1 to 8,192"),
    ("mining.skip_relevance", 1.5, "config.mining.skip_relevance is 1.5; expected from 0 to below"),
    ("mining.scope", "all", "config.mining.scope is 'all'; expected one of batch, train, bank"),
    ("loss.distance", "l3", "config.loss.distance is 'l3'; expected one of l1, l2, msd, cosine"),
    ("loss.lower", -0.5, "config.loss.lower is -0.5"),
    ("warmup.loss", "triplet", "config.warmup.loss is 'triplet'; expected one of"),
    ("optimizer.multipliers", (5,), "holds 5; expected (parameter path regex, factor >= 0)"),
    ("optimizer.multipliers", (("a", "b"),), "expected (parameter path regex, factor >= 0)"),
    ("optimizer.multipliers", (("a", float("inf")),), "expected a finite number"),
  ],
)
def test_a_value_outside_of_its_range_is_named_with_the_range(key, value, found):
  config = config_lib.base_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError) as error:
    config_lib.validate(config)
  assert found in str(error.value)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_field_says_what_it_means_and_every_number_what_it_may_be(task):
  config = config_lib.base_config(task)
  described = {name: rest for name, *rest in config_lib.described(config)}
  assert set(described) == set(config_lib.flat(config))
  # Whole numbers have no ".0", whichever type the limit has.
  assert described["epochs"][1] == "from 0 to 1,000,000"
  assert described["optimizer.eps"][1] == "more than 0, at most 1"
  assert described["data.min_area"][1] == "more than 0, at most 1"
  for name, (default, allowed, about, _) in described.items():
    assert about, f"config.{name} says nothing of itself"
    number = isinstance(default, int | float) and not isinstance(default, bool)
    assert allowed or not number, f"config.{name} is a number without a range"


def test_another_loss_brings_its_own_defaults():
  config = config_lib.base_config()
  config.loss.margin = 0.3
  config.loss.name = "imc"
  assert config.loss.margin == 0.3, "the same name changes nothing"
  config.loss.name = "info_nce"
  assert config.loss.to_dict() == {
    "name": "info_nce",
    "learn": (),
    "temperature": 0.07,
    "bias": 0.0,
    "kind": "dot",
  }
  with pytest.raises(
    AttributeError, match="info_nce has no parameter margin; expected some of learn, temperature"
  ):
    config.loss.margin = 0.2
  config.update_from_flattened_dict({"loss.margin": 0.4, "loss.name": "max_of_hinges"})
  assert config.loss.margin == 0.4 and config.is_locked and config.loss.is_locked
  copy = config.copy_and_resolve_references()
  copy.loss.name = "sigmoid"
  assert copy.loss.bias == -10.0 and config.loss.name == "max_of_hinges"


def test_a_config_of_the_version_before_is_read():
  now = config_lib.flat(config_lib.base_config()) | {"data.cache_dir": "cache"}
  before = {key: value for key, value in now.items() if not key.startswith("loss.")}
  nothing = dict.fromkeys(("margin", "weight", "distance", "kind", "temperature", "threshold"))
  before |= {f"loss.{key}": value for key, value in nothing.items()} | {"loss.name": "imc"}
  # It had the fields of all encoders for each, and lacked some of today's.
  before |= {"model.image.hidden": 0, "model.image.input_norm": True, "model.text.depth": 2}
  del before["picture"]
  assert config_lib.flat(config_lib.from_flat(before, where="config.json")) == now
  given = config_lib.from_flat({**before, "loss.margin": 0.3}, where="config.json")
  assert given.loss.margin == 0.3 and given.loss.weight == 1.0
  with pytest.raises(UserError, match="does not know: loss.temperature; load it with its own"):
    config_lib.from_flat({**before, "loss.temperature": 0.3}, where="config.json")


def test_only_what_moves_no_done_step_may_change_on_resume():
  old = config_lib.flat(config_lib.base_config())
  assert (
    config_lib.differences(old, {**old, "epochs": 40.0, "data.workers": 3, "log.steps": 1}) == []
  )
  assert config_lib.differences(old, {**old, "seed": 1, "loss.margin": 0.3}) == [
    "config.loss.margin: 0.2 -> 0.3",
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


def test_the_task_of_another_config_is_named():
  config = config_lib.base_config()
  config.task = "fine_grained"
  with pytest.raises(UserError, match="config.task is 'fine_grained', but this config has no"):
    config_lib.validate(config)


def test_an_unknown_dataset_is_refused_with_the_known_ones_before_any_data_is_read():
  config = config_lib.base_config()
  config.data.name = "flickr9k"
  with pytest.raises(UserError, match="config.data.name is 'flickr9k'; expected one of flickr8k, "):
    config_lib.validate(config)


def test_results_are_the_same_wherever_a_run_computes():
  one = config_lib.flat(config_lib.base_config())
  for name in ("data.dir", "eval_batch_size", "mining.block", "log.steps", "picture"):
    assert config_lib.same_results(one, one | {name: "another"}), name
  for name in ("epochs", "evaluate.split", "loss.margin", "seed"):
    assert not config_lib.same_results(one, one | {name: "another"}), name
