"""Every default of a run, and the checks that need nothing but the config."""

import math
import re

import ml_collections
from ml_collections import config_dict

from xmr import recipe
from xmr.errors import UserError
from xmr.eval.table import options as evaluations
from xmr.tasks import TASKS

placeholder = config_dict.placeholder


def base_config():
  """Returns the locked config that every file in configs/ starts from: all fields, with their
  defaults.
  """
  config = ml_collections.ConfigDict()
  config.task = "retrieval"  # a name in xmr.tasks.TASKS
  config.seed = 0
  # fixed: as given · by_size: fields that are 0 suit the number of captions (xmr/recipe.py)
  config.recipe = "fixed"
  config.epochs = 30.0  # length of training; 0 to count in steps
  config.steps = 0  # or so many steps, with epochs=0
  config.batch_size = 128  # captions per step over all devices and processes
  config.eval_batch_size = 250  # rows encoded at a time in evaluation
  # image_id: captions of one image are never its negatives · pair: only the pair itself (released)
  config.match = "image_id"
  config.similarity = "cosine"  # of evaluation: cosine · dot · order

  config.data = data = ml_collections.ConfigDict()
  data.name = (
    "scenes"  # flickr8k · flickr30k · coco · scenes · own · wikipedia · tvgraz · wikipedia_zh
  )
  data.dir = ""  # folder of the dataset; scenes need none
  data.captions = ""  # own: file in dir that holds the captions; empty: found by looking
  data.columns = (
    ""  # own: columns of a table, image=NAME,caption=NAME|NAME,split=NAME; empty: known
  )
  data.cache_dir = "~/.cache/xmr"  # prepared array_record files and relevance matrices
  data.image = "pixels"  # pixels · features
  data.text = "words"  # words · features
  data.image_features = ""  # .npy, row = imgid; relative to dir
  data.text_features = ""  # .npy, row = sentid; relative to dir
  data.image_features_scale = (
    "none"  # none · column: unit columns over all splits (Full-HN as released) · row: unit rows
  )
  data.restval = False  # COCO: train on the 30,504 restval images too
  data.image_size = 224  # pixels of a side after cropping
  data.resize = 256  # shorter side before the centre crop of evaluation
  data.min_area = 0.08  # smallest share of an image that a training crop shows
  data.max_length = (
    0  # words per caption with <start> and <end>; 0 = the longest of the training split
  )
  data.one_caption_per_image = (
    False  # True: a batch holds an image once, an epoch one caption of each
  )
  data.workers = 0  # processes that decode; 0 = this one
  data.prefetch = 2  # batches ready ahead, per worker
  data.scenes = ml_collections.ConfigDict({"n_train": 2000, "n_val": 200, "n_test": 500})

  config.vocabulary = vocabulary = ml_collections.ConfigDict()
  vocabulary.min_count = 4  # words seen fewer times are <unk>
  vocabulary.splits = "train"  # train · all: count val and test captions too (released)
  vocabulary.extend = False  # with init: add the words that the other run lacks, keep its rows
  vocabulary.glove = ""  # text file of vectors for the initial word embedding; relative to data.dir
  vocabulary.glove_missing = (
    "normal"  # words without one: N(0, 1) (released) · matched: the vectors' own deviation
  )

  config.model = model = ml_collections.ConfigDict()
  model.dim = 1024  # of the joint space
  model.normalize = (
    "l2"  # l2: unit rows · abs: unit rows of absolute values (order embeddings) · none
  )
  model.dtype = "float32"  # of the computation; parameters, norms and losses stay float32
  model.image = image = ml_collections.ConfigDict()
  image.name = (
    "convnet"  # linear · mlp · convnet · resnet18/34/50/101/152 · vgg19 · efficientnet_v2_s/m/l
  )
  image.bias = True
  image.input_norm = True  # unit length of the backbone's feature before the projection
  image.hidden = 0  # mlp: units; 0 = as released, (input + dim) / 2
  image.depth = 2  # mlp: hidden layers
  image.activation = "relu"
  image.dropout = 0.0
  image.weights = ""  # safetensors of the backbone, from python -m xmr.models.convert
  image.trainable = True  # False: the backbone is frozen
  image.batch_norm = (
    "frozen"  # frozen: running statistics · released: batch statistics, drifting even when frozen
  )
  image.remat = False  # recompute blocks in the backward pass to save memory
  model.text = text = ml_collections.ConfigDict()
  text.name = "bilstm"  # lstm · bilstm · gru · bigru · linear · mlp
  text.word_dim = 300
  text.hidden = 0  # units per direction; 0 = dim
  text.depth = 2  # mlp: hidden layers
  text.activation = "relu"
  text.bias = True
  text.input_norm = False
  text.dropout = 0.4  # on word vectors (0.4 as released, 0.5 in the paper), or between mlp layers
  text.readout = "last"  # last (released) · ends (paper) · mean · max
  text.word_init = "xavier"  # of words without GloVe: xavier · uniform (VSE++) · normal

  # plain: [B, B] at once · ring: blocks go around the devices, for large batches; equal numbers
  config.loss_form = "plain"
  config.loss = loss = ml_collections.ConfigDict()
  loss.name = "imc"  # a name in xmr.losses.LOSSES
  for name, kind in LOSS_PARAMETERS.items():
    loss[name] = placeholder(kind)  # None: the loss's own default

  config.warmup = warmup = ml_collections.ConfigDict()
  warmup.loss = (
    "sum_of_hinges"  # of the first epochs: hardest negatives alone collapse a model from scratch
  )
  warmup.epochs = 0.0  # 0 and 0: no warm-up
  warmup.steps = 0

  config.mining = mining = ml_collections.ConfigDict()
  # batch · train · bank · random · released: where negatives come from, for losses that take them
  mining.scope = "batch"
  mining.refresh_steps = 100  # bank: steps between refreshed embeddings
  mining.block = 1024  # rows of the training set encoded at a time; a GPU may want more
  mining.rank = 0  # take the k-th hardest instead of the hardest (0)
  mining.skip_relevance = (
    0.0  # never take a caption whose ROUGE-L relevance to the image is above; 0 = no limit
  )
  mining.semi_hard = False  # hardest among those that score below the positive
  mining.dtype = "float32"  # of mined similarities; bfloat16 keeps float32 sums

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.name = "adam"  # adam · sgd
  optimizer.learning_rate = 2e-4
  optimizer.schedule = "step"  # step · constant · cosine
  optimizer.decay = 0.1  # step: factor
  optimizer.decay_epochs = 15.0  # step: every so many epochs
  optimizer.decay_once = False  # step: a single step at decay_epochs (Full-HN)
  optimizer.warmup_steps = 0  # linear rise of the learning rate
  optimizer.b1 = 0.9
  optimizer.b2 = 0.999
  optimizer.eps = 1e-8
  optimizer.clip = 2.0  # global gradient norm; 0 = none
  optimizer.l2 = 0.0  # penalty l2 * |kernel|^2 in the gradient
  optimizer.weight_decay = 0.0  # decoupled, on kernels
  # (("parameter path regex", learning rate factor), ...); factor 0 freezes
  optimizer.multipliers = ()

  config.evaluate = evaluate = ml_collections.ConfigDict()
  evaluate.epochs = 1.0  # validate every so many epochs,
  evaluate.steps = 0  # or steps with epochs=0
  evaluate.select = (
    "best"  # checkpoint that is scored: best (validation rsum) · latest (Full-HN as released)
  )
  evaluate.split = "test"  # scored at the end
  # What is scored at the end: the options of xmr/eval/table.py.
  for name, option in evaluations().items():
    evaluate[name] = option.default

  config.checkpoint = ml_collections.ConfigDict(
    {"steps": 500}
  )  # besides every validation; 0 = only then
  config.log = ml_collections.ConfigDict({"steps": 10, "tensorboard": True, "progress": True})
  config.profile = ml_collections.ConfigDict(
    {"steps": 0, "start": 10}
  )  # trace so many steps from `start`
  config.picture = True  # retrieved.png at the end, and in TensorBoard at each validation
  config.init = ""  # workdir of another run whose best parameters this one starts from
  return config.lock()


LOSS_PARAMETERS = {
  "margin": float,
  "weight": float,
  "distance": str,
  "lower": float,
  "upper": float,
  "form": str,
  "reduce": str,
  "kind": str,
  "intra_margin": float,
  "pair_rule": str,
  "temperature": float,
  "bias": float,
  "beta": float,
  "threshold": float,
}

# What may change between two starts in one workdir: nothing that moves a parameter of the steps
# already done.
RESUMABLE = (
  "epochs",
  "steps",
  "data.dir",
  "data.cache_dir",
  "data.workers",
  "data.prefetch",
  "eval_batch_size",
  "evaluate.split",
  "evaluate.select",
  "checkpoint.steps",
  "log.steps",
  "log.tensorboard",
  "log.progress",
  "profile.steps",
  "profile.start",
  "picture",
  "mining.block",
)

# What may differ between a finished run and the run that is asked for: where it runs, not what it
# computes.
ELSEWHERE = (
  "data.dir",
  "data.cache_dir",
  "data.workers",
  "data.prefetch",
  "eval_batch_size",
  "mining.block",
)
ELSEWHERE_SECTIONS = ("log.", "profile.", "checkpoint.", "picture")

FEATURE_ENCODERS = ("linear", "mlp")

CHOICES = {
  "task": tuple(TASKS),
  "recipe": ("fixed", "by_size"),
  "match": ("image_id", "pair"),
  "loss_form": ("plain", "ring"),
  "similarity": ("cosine", "dot", "order"),
  "data.image": ("pixels", "features"),
  "data.text": ("words", "features"),
  "data.image_features_scale": ("none", "column", "row"),
  "vocabulary.splits": ("train", "all"),
  "vocabulary.glove_missing": ("normal", "matched"),
  "model.normalize": ("l2", "abs", "none"),
  "model.dtype": ("float32", "bfloat16"),
  "model.image.batch_norm": ("frozen", "released"),
  "model.text.readout": ("last", "ends", "mean", "max"),
  "model.text.word_init": ("xavier", "uniform", "normal"),
  "mining.scope": ("batch", "train", "bank", "random", "released"),
  "mining.dtype": ("float32", "bfloat16"),
  "optimizer.name": ("adam", "sgd"),
  "optimizer.schedule": ("step", "constant", "cosine"),
  "evaluate.select": ("best", "latest"),
  "evaluate.split": ("train", "val", "test"),
}

POSITIVE = (
  "batch_size",
  "eval_batch_size",
  "data.image_size",
  "data.resize",
  "data.prefetch",
  "vocabulary.min_count",
  "model.dim",
  "model.text.word_dim",
  "optimizer.learning_rate",
  "log.steps",
  "mining.block",
  "mining.refresh_steps",
  "data.scenes.n_train",
  "data.scenes.n_val",
  "data.scenes.n_test",
)

NOT_NEGATIVE = (
  "epochs",
  "steps",
  "warmup.epochs",
  "warmup.steps",
  "evaluate.epochs",
  "evaluate.steps",
  "checkpoint.steps",
  "data.workers",
  "data.max_length",
  "optimizer.clip",
  "optimizer.weight_decay",
  "optimizer.l2",
  "optimizer.warmup_steps",
  "profile.steps",
  "mining.rank",
  "mining.skip_relevance",
  "seed",
)


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


def in_steps(section, steps_per_epoch, *, name, optional=False):
  """Returns a duration in steps from a section's `epochs` or `steps`, of which exactly one may be
  set.

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
  """Raises UserError, naming the field, for any value that is wrong by itself or beside another
  field.
  """
  if config.recipe == "by_size":
    config = recipe.by_size(config, captions=1000)  # Any number: what is left open is no mistake.
  values = flat(config)
  for key, choices in CHOICES.items():
    if values[key] not in choices:
      raise UserError(f"config.{key} is {values[key]!r}; expected one of {', '.join(choices)}")
  for key, value in values.items():
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"config.{key} is {value}; expected a finite number")
  for key in POSITIVE:
    if not values[key] > 0:
      raise UserError(f"config.{key} is {values[key]}; expected more than 0")
  for key in NOT_NEGATIVE:
    if not values[key] >= 0:
      raise UserError(f"config.{key} is {values[key]}; expected 0 or more")
  for name, option in evaluations().items():
    option.check(f"config.evaluate.{name}", values[f"evaluate.{name}"])
  for side in ("image", "text"):
    if not 0 <= values[f"model.{side}.dropout"] < 1:
      raise UserError(
        f"config.model.{side}.dropout is {values[f'model.{side}.dropout']}; expected from 0 to "
        "below 1"
      )
    source, name = values[f"data.{side}"], values[f"model.{side}.name"]
    if config.task == "retrieval" and (source == "features") != (name in FEATURE_ENCODERS):
      expected = ", ".join(FEATURE_ENCODERS) if source == "features" else f"an encoder of {source}"
      raise UserError(
        f"config.data.{side} is {source!r} but config.model.{side}.name is {name!r}; expected "
        f"{expected}"
      )
    if source == "features" and not values[f"data.{side}_features"]:
      raise UserError(
        f'config.data.{side} is "features" but config.data.{side}_features names no .npy file'
      )
  for name, section, optional in (
    ("config.", config, False),
    ("config.warmup.", config.warmup, True),
    ("config.evaluate.", config.evaluate, False),
  ):
    in_steps(section, 1, name=name, optional=optional)
  for item in config.optimizer.multipliers:
    if len(item) != 2 or not isinstance(item[0], str) or item[1] < 0:
      raise UserError(
        f"config.optimizer.multipliers holds {item!r}; expected (parameter path regex, factor >= 0)"
      )
    try:
      re.compile(item[0])
    except re.error as error:
      raise UserError(
        f"config.optimizer.multipliers: {item[0]!r} is no regular expression: {error}"
      ) from None


def differences(old, new):
  """Returns "key: old -> new" for every field that differs and would change training; two flat
  dicts of a config.
  """
  free = set(RESUMABLE) | {f"evaluate.{name}" for name in evaluations()}
  if new["optimizer.schedule"] == "cosine":
    # Its learning rate depends on the last step from the first one on.
    free -= {"epochs", "steps"}
  keys = sorted(key for key in {**old, **new} if key not in free and old.get(key) != new.get(key))
  return [f"config.{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys]


def same_results(old, new):
  """Returns whether two flat dicts of a config differ at most in where they run."""
  differing = {key for key in {**old, **new} if old.get(key) != new.get(key)}
  return all(key in ELSEWHERE or key.startswith(ELSEWHERE_SECTIONS) for key in differing)
