"""Every field of a run with its default and allowed values, and the checks of a config alone."""

import re
from typing import Any

from xmr import fields, recipe, tasks
from xmr.errors import UserError
from xmr.eval.table import options as evaluations
from xmr.fields import Config, field
from xmr.losses import table as losses
from xmr.mining import table as mining
from xmr.models import table as models
from xmr.models.fields import TOWERS
from xmr.terminal import home

BIG = 2**31 - 1  # more steps, rows or batches than any run has
ON = {"resumable": True}  # may change between two starts of a run
ELSEWHERE = {**ON, "elsewhere": True}  # may differ between a finished run and the same one again
STEPS = {"at_least": 0, "at_most": BIG}
EPOCHS = {"at_least": 0, "at_most": 1e6}
RATE = {"at_least": 0, "below": 1}

# The fields of every run, except those that the tables of losses, encoders and metrics declare and
# those of a single task.
FIELDS = {
  "task": field(
    "retrieval",
    "what is trained: a row of xmr/tasks.py",
    choices=tasks.TASKS,
  ),
  "seed": field(0, "of all that is random", at_least=0, at_most=2**32 - 1),
  "recipe": recipe.FIELD,
  "epochs": field(30.0, "length of training; 0 to count in steps", **EPOCHS, **ON),
  "steps": field(0, "or so many steps, with epochs=0", **STEPS, **ON),
  "batch_size": field(
    128, "captions per step over all devices and processes", at_least=1, at_most=2**24
  ),
  "eval_batch_size": field(
    250, "rows encoded at a time in evaluation", at_least=1, at_most=2**24, **ELSEWHERE
  ),
  "match": field(
    "image_id",
    "image_id: captions of one image are never its negatives; pair: only the pair (released)",
    choices=("image_id", "pair"),
  ),
  "similarity": field("cosine", "of evaluation", choices="xmr.ops.similarity.KINDS"),
  # The dataset.
  "data.name": field("scenes", "of the dataset", choices="xmr.data.DATASETS"),
  "data.dir": field("", "folder of the dataset; scenes need none", **ELSEWHERE),
  "data.captions": field("", "own: file in dir that holds the captions; empty: found by looking"),
  "data.columns": field(
    "", "own: columns of a table, image=NAME,caption=NAME|NAME,split=NAME; empty: known"
  ),
  "data.cache_dir": field(
    "~/.cache/xmr", "prepared array_record files and relevance matrices", **ELSEWHERE
  ),
  "data.image": field("pixels", "what is read", choices=("pixels", "features", "regions")),
  "data.text": field("words", "what a text is read as", choices=("words", "features")),
  "data.image_features": field("", ".npy, row = imgid; relative to dir"),
  "data.image_mask": field("", "regions: .npy [images, regions] bool; relative to dir"),
  "data.text_features": field("", ".npy, row = sentid; relative to dir"),
  "data.image_features_scale": field(
    "none",
    "column: unit columns over all splits (Full-HN as released); row: unit rows",
    choices=("none", "column", "row"),
  ),
  "data.restval": field(False, "COCO: train on the 30,504 restval images too"),
  "data.image_size": field(224, "pixels of a side after cropping", at_least=1, at_most=8192),
  "data.resize": field(
    256, "shorter side before the centre crop of evaluation", at_least=1, at_most=8192
  ),
  "data.min_area": field(0.08, "least share of an image in a training crop", above=0, at_most=1),
  "data.max_length": field(
    0,
    "words per caption with <start> and <end>; 0: the longest of the training split",
    at_least=0,
    at_most=65536,
  ),
  "data.one_caption_per_image": field(
    False, "True: a batch holds an image once, an epoch one caption of each"
  ),
  "data.workers": field(
    0, "processes that decode; 0: this one", at_least=0, at_most=1024, **ELSEWHERE
  ),
  "data.prefetch": field(
    2, "batches ready ahead, per worker", at_least=1, at_most=4096, **ELSEWHERE
  ),
  "data.scenes.n_train": field(2000, "scenes to train on", at_least=1, at_most=10**7),
  "data.scenes.n_val": field(200, "scenes to validate on", at_least=1, at_most=10**7),
  "data.scenes.n_test": field(500, "scenes to score", at_least=1, at_most=10**7),
  # The vocabulary.
  "vocabulary.min_count": field(4, "words seen fewer times are <unk>", at_least=1, at_most=BIG),
  "vocabulary.splits": field("train", "all: val, test too (released)", choices=("train", "all")),
  "vocabulary.extend": field(
    False, "with init: add the words that the other run lacks, keep its rows"
  ),
  "vocabulary.glove": field("", "text file of initial word vectors; relative to data.dir"),
  "vocabulary.glove_missing": field(
    "normal",
    "words without one: N(0, 1) (released), or matched: the vectors' own deviation",
    choices=("normal", "matched"),
  ),
  # The model; config.model.image and config.model.text are rows of xmr/models/table.py.
  "model.dim": field(1024, "of the joint space", at_least=1, at_most=65536),
  "model.normalize": field(
    "l2",
    "l2: unit rows; abs: unit rows of absolute values (order embeddings); none",
    choices="xmr.models.normalize.KINDS",
  ),
  "model.dtype": field(
    "float32",
    "of the computation; parameters, norms and losses stay float32",
    choices="xmr.models.dual_encoder.DTYPES",
  ),
  "model.shared_layers": field(0, "transformer over tokens of both sides", at_least=0, at_most=64),
  "model.shared_heads": field(4, "of those layers", at_least=1, at_most=256),
  # The loss; config.loss is a row of xmr/losses/table.py.
  "loss_form": field(
    "plain",
    "plain: [B, B] at once; ring: blocks go around the devices, for large batches; equal numbers",
    choices=("plain", "ring"),
  ),
  "loss_gather": field(
    "float32", "plain: type of rows on their way to devices", choices=("float32", "bfloat16")
  ),
  "warmup.loss": field(
    "sum_of_hinges",
    "of the first epochs: hardest negatives alone collapse a model from scratch",
    choices=losses.LOSSES,
  ),
  "warmup.epochs": field(0.0, "0 and 0: no warm-up", **EPOCHS),
  "warmup.steps": field(0, "or so many steps", **STEPS),
  # Where negatives come from.
  "mining.scope": field(
    "batch",
    "where negatives come from, for losses that take them: a row of xmr/mining/table.py",
    choices=mining.SCOPES,
  ),
  "mining.refresh_steps": field(
    100, "bank: steps between refreshed embeddings", at_least=1, at_most=BIG
  ),
  "mining.block": field(
    1024,
    "rows of the training set encoded at a time; a GPU may want more",
    at_least=1,
    at_most=2**24,
    **ELSEWHERE,
  ),
  "mining.rank": field(
    0, "take the k-th hardest instead of the hardest (0)", at_least=0, at_most=2**20
  ),
  "mining.skip_relevance": field(
    0.0,
    "never take a caption whose ROUGE-L relevance to the image is above; 0: no limit",
    **RATE,
  ),
  "mining.semi_hard": field(False, "hardest among those that score below the positive"),
  "mining.dtype": field(
    "float32",
    "of mined similarities; bfloat16 keeps float32 sums",
    choices=("float32", "bfloat16"),
  ),
  # The optimiser.
  "optimizer.name": field("adam", "of the optimiser", choices=("adam", "sgd")),
  "optimizer.learning_rate": field(2e-4, "at its highest", above=0, at_most=1e38),
  "optimizer.schedule": field("step", "of the rate", choices=("step", "constant", "cosine")),
  "optimizer.decay": field(0.1, "step: factor", above=0, at_most=1),
  "optimizer.decay_epochs": field(15.0, "step: every so many epochs", above=0, at_most=1e6),
  "optimizer.decay_once": field(False, "step: a single step at decay_epochs (Full-HN)"),
  "optimizer.warmup_steps": field(0, "linear rise of the learning rate", **STEPS),
  "optimizer.b1": field(0.9, "adam: decay of the mean", **RATE),
  "optimizer.b2": field(0.999, "adam: decay of the variance", **RATE),
  "optimizer.eps": field(1e-8, "adam: added to the root of the variance", above=0, at_most=1),
  "optimizer.clip": field(2.0, "global gradient norm; 0: none", at_least=0, at_most=1e9),
  "optimizer.l2": field(0.0, "penalty l2 * |kernel|^2 in the gradient", at_least=0, at_most=1e4),
  "optimizer.weight_decay": field(0.0, "decoupled, on kernels", at_least=0, at_most=1e4),
  "optimizer.multipliers": field(
    (),
    '(("parameter path regex", learning rate factor), ...); factor 0 freezes; "^loss/" is what '
    "config.loss.learn names",
  ),
  # Validation and the score at the end.
  "evaluate.epochs": field(1.0, "validate every so many epochs,", **EPOCHS),
  "evaluate.steps": field(0, "or steps with epochs=0", **STEPS),
  "evaluate.select": field(
    "best",
    "checkpoint that is scored: best (validation rsum), latest (Full-HN as released)",
    choices=("best", "latest"),
    **ON,
  ),
  "evaluate.split": field("test", "scored at the end", choices=("train", "val", "test"), **ON),
  # What a run writes.
  "checkpoint.steps": field(500, "besides every validation; 0: only then", **STEPS, **ELSEWHERE),
  "log.steps": field(10, "between two lines of metrics", at_least=1, at_most=BIG, **ELSEWHERE),
  "log.tensorboard": field(True, "curves for TensorBoard", **ELSEWHERE),
  "log.progress": field(True, "a line of progress", **ELSEWHERE),
  "profile.steps": field(0, "trace so many steps", **STEPS, **ELSEWHERE),
  "profile.start": field(10, "from this one on", **STEPS, **ELSEWHERE),
  "picture": field(
    True, "retrieved.png at the end, and in TensorBoard at each validation", **ELSEWHERE
  ),
  "init": field("", "workdir of another run whose best parameters this one starts from"),
}
FIELDS |= TOWERS


def fields_of(task):
  """Returns {"data.name": Field} of all fields of a task except its loss's and encoders'."""
  metrics = {f"evaluate.{name}": option for name, option in evaluations().items()}
  return FIELDS | metrics | fields.resolve(tasks.FIELDS.get(task, {}))


def base_config(task: str = "retrieval") -> Config:
  """Returns the locked config that all files in configs/ start from, with every field's default.

  Args:
    task: key of xmr.tasks.TASKS.
  """
  tree: dict[str, Any] = {}
  for name, declared in fields_of(task).items():
    *sections, last = name.split(".")
    section = tree
    for part in sections:
      section = section.setdefault(part, {})
    section[last] = declared.default
  config = Config(tree)
  config.task = task
  config.model.image, config.model.text = models.Image(), models.Text()
  config.loss = losses.Section()
  for section in (config.model.image, config.model.text, config.loss):
    section.name = section.NAME.default
  return config.lock()


def declared(config):
  """Returns {"data.name": Field} of every field of a config, including its loss's and encoders'."""
  found = fields_of(config.task)
  for path, section in (
    ("loss", config.loss),
    ("model.image", config.model.image),
    ("model.text", config.model.text),
  ):
    found[f"{path}.name"] = section.NAME
    found |= {f"{path}.{key}": each for key, each in section.declared(section.name).items()}
  return found


def described(config):
  """Yields (name, default, allowed values in words, meaning, resumable) of every field of a
  config.
  """
  for name, each in declared(config).items():
    yield name, each.default, each.allowed, each.about, each.resumable


def flat(config, prefix=""):
  """Returns {"data.name": value, ...} of a nested config."""
  result = {}
  for key in config:
    value = config[key]
    if hasattr(value, "keys"):
      result |= flat(value, f"{prefix}{key}.")
    else:
      result[prefix + key] = list(value) if isinstance(value, tuple) else value
  return result


def from_flat(values, *, where):
  """Returns the config of {"data.name": value}, as config.json has it.

  A field that the run did not know gets its default. So does a loss's parameter that is None, as an
  earlier version wrote it; that version also wrote the fields of all encoders, not only the chosen.

  Args:
    values: dict of a config.json.  where: its path, for the errors.
  Raises:
    UserError: a field that this version does not know, or a value of another type.
  """
  task = values.get("task", "retrieval")
  try:
    FIELDS["task"].check("task", task)
    config = base_config(task)
    for name in ("loss.name", "model.image.name", "model.text.name"):
      if name in values:
        config.update_from_flattened_dict({name: values[name]})
    known, strange, given = flat(config), [], {}
    for name, value in values.items():
      section, _, last = name.rpartition(".")
      other_encoder = section in ("model.image", "model.text") and last in models.FIELDS
      if name in known and value is not None:
        given[name] = _tuples(value)
      elif name not in known and not other_encoder and not (section == "loss" and value is None):
        strange.append(name)
    if strange:
      raise UserError(
        f"{where} has fields that this version of xmr does not know: {', '.join(strange)}; load it "
        "with its own"
      )
    config.update_from_flattened_dict(given)
  except (TypeError, AttributeError, ValueError) as error:
    if str(where) in str(error):
      raise
    raise UserError(f"{where} holds a value of the wrong type: {error}") from None
  home.expand(config)
  return config


def _tuples(value):
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def in_steps(section, steps_per_epoch, *, name, optional=False):
  """Returns a duration in steps from a section's `epochs` or `steps`; exactly one must be set.

  Args:
    section: a config section with `epochs` (float) and `steps` (int); 0 means not set.
    steps_per_epoch: int.
    name: of the section, for the error.
    optional: True: neither set means 0 steps.
  Raises:
    UserError: both are set, or neither.
  """
  if section.epochs and section.steps:
    raise UserError(
      f"{name}epochs={section.epochs:g} and {name}steps={section.steps}: one of them must be 0"
    )
  if not section.epochs and not section.steps and not optional:
    raise UserError(f"{name}epochs and {name}steps are both 0: set one of them")
  return section.steps or round(section.epochs * steps_per_epoch)


def validate(config):
  """Raises UserError, naming the field, for a value that is wrong alone or with another field."""
  sized = config.recipe != "imported"
  config = recipe.example(config)
  values, fields = flat(config), declared(config)
  if missing := sorted(set(fields) - set(values)):
    raise UserError(f"config.task is {config.task!r}, but this config has no field {missing[0]}")
  for name, each in fields.items():
    each.check(f"config.{name}", values[name])
  losses.learned(config.loss.name, config.loss.learn)
  for side in ("image", "text"):
    source, name = values[f"data.{side}"], values[f"model.{side}.name"]
    if config.task == "retrieval" and source != models.row(side, name).reads:
      known = [key for key, row in models.SIDES[side].items() if row.reads == source]
      raise UserError(
        f"config.data.{side} is {source!r} but config.model.{side}.name is {name!r}; expected "
        f"{', '.join(known)}"
      )
    if source in ("features", "regions") and not values[f"data.{side}_features"]:
      raise UserError(
        f'config.data.{side} is "{source}" but config.data.{side}_features names no .npy file'
      )
  if config.task == "retrieval":
    models.check_towers(config, sized=sized)
    models.check_tokens(config, loss=losses.takes_tokens(config.loss.name, config.loss))
  for name, section, optional in (
    ("config.", config, False),
    ("config.warmup.", config.warmup, True),
    ("config.evaluate.", config.evaluate, False),
  ):
    in_steps(section, 1, name=name, optional=optional)
  for item in config.optimizer.multipliers:
    _check_multiplier(item)


def _check_multiplier(item):
  name = "config.optimizer.multipliers"
  pair = isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str)
  if not pair or isinstance(item[1], bool) or not isinstance(item[1], int | float):
    raise UserError(f"{name} holds {item!r}; expected (parameter path regex, factor >= 0)")
  field(at_least=0, at_most=1e6).check(f"{name}: the factor of {item[0]!r}", item[1])
  try:
    re.compile(item[0])
  except re.error as error:
    raise UserError(f"{name}: {item[0]!r} is no regular expression: {error}") from None


def differences(old, new):
  """Compares two flat dicts of a config; returns "key: old -> new" for every difference that would
  change training.
  """
  known = fields_of(new["task"])
  free = {name for name, each in known.items() if each.resumable}
  if new["optimizer.schedule"] == "cosine":
    # Its learning rate depends on the last step from the first one on.
    free -= {"epochs", "steps"}
  keys = sorted(key for key in {**old, **new} if key not in free and old.get(key) != new.get(key))
  return [f"config.{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys]


def same_results(old, new):
  """Returns whether two flat dicts of a config differ only in where they run, if at all."""
  known = fields_of(new["task"])
  differing = {key for key in {**old, **new} if old.get(key) != new.get(key)}
  return all(key in known and known[key].elsewhere for key in differing)
