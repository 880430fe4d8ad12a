"""Fields that a config leaves open: values for a number of captions, or for imported weights."""

import math
import pathlib

from xmr.errors import UserError
from xmr.fields import field
from xmr.storage.files import read_json

FIELD = field(
  "fixed",
  "by_size: fields that are 0 suit the number of captions; imported: encoders and images are those "
  "of imported weights (xmr/recipe.py)",
  choices=("fixed", "by_size", "imported"),
)

# Losses under which a model from scratch collapses without a warm-up.
_HARDEST = ("max_of_hinges", "imc")


# The fields that it fills in where they are 0.
OPEN = (
  "batch_size",
  "epochs",
  "steps",
  "evaluate.epochs",
  "evaluate.steps",
  "optimizer.learning_rate",
  "optimizer.warmup_steps",
  "warmup.epochs",
  "warmup.steps",
)


def by_size(config, captions, *, devices=1):
  """Returns a config whose open fields suit the number of training captions.

  These fields are open where they are 0: batch_size (a sixteenth of the captions, 16 to 128, a
  power of two); epochs and steps (30 epochs up to 1,000 captions, half as many for each factor of
  sixteen, at least 5); evaluate.epochs and .steps (10 validations); optimizer.learning_rate (1e-3,
  or 3e-4 from config.init or pretrained weights) and its warmup_steps (a twentieth); the warm-up of
  a loss that uses only the hardest negatives (a quarter). A field that is set stays.

  Args:
    config: ConfigDict with recipe "by_size".
    captions: int, of the training split.  devices: int; the batch is a multiple of it.
  Returns:
    ConfigDict, locked; `config` is not changed.
  """
  config = config.copy_and_resolve_references()
  with config.unlocked():
    if not config.batch_size:
      size = min(128, max(16, 2 ** int(math.log2(max(1, captions / 16)))))
      size = min(size, captions)
      config.batch_size = max(devices, size // devices * devices)
    samples = max(1, captions // config.batch_size)
    if not config.epochs and not config.steps:
      config.epochs = float(round(min(30, max(5, 30 * (1000 / captions) ** (1 / 4)))))
    steps = config.steps or round(config.epochs * samples)
    if not config.evaluate.epochs and not config.evaluate.steps:
      config.evaluate.steps = max(1, steps // 10)
    optimizer, warmup = config.optimizer, config.warmup
    if not optimizer.learning_rate:
      pretrained = config.init or config.model.image.weights
      optimizer.learning_rate = 3e-4 if pretrained else 1e-3
    if not optimizer.warmup_steps:
      optimizer.warmup_steps = max(1, steps // 20)
    if config.loss.name in _HARDEST and not warmup.epochs and not warmup.steps and not config.init:
      warmup.steps = steps // 4
  return config


def line(config, captions):
  """Returns what was chosen as one line."""
  length = _steps(config.steps) if config.steps else _epochs(config.epochs)
  return (
    f"for {captions:,} training captions: batch_size={config.batch_size}, {length}, "
    f"learning_rate={config.optimizer.learning_rate:g} after "
    f"{_steps(config.optimizer.warmup_steps)} of warm-up, a validation every "
    f"{_every(config.evaluate)}"
  )


def _every(section):
  return _steps(section.steps) if section.steps else _epochs(section.epochs)


def _epochs(count):
  return f"{count:g} epoch{'s' * (count != 1)}"


def _steps(count):
  return f"{count:,} step{'s' * (count != 1)}"


def imported(config, folder):
  """Returns a config whose encoders and images are those of imported weights.

  The weights set all fields of the encoders that they fix, and how images are resized. They also
  set data.image_size and data.resize where these are 0; other sizes interpolate position
  embeddings. A temperature or bias of the loss that has its default starts at the weights' value.

  Args:
    config: ConfigDict with recipe "imported".
    folder: made by python -m xmr.import_run --pretrained, or None.
  Returns:
    ConfigDict, locked; `config` is not changed.
  Raises:
    UserError: no such folder, or one without settings.
  """
  path = pathlib.Path(folder or ".") / "source.json"
  found = read_json(path) if folder and path.is_file() else {}
  if "settings" not in found:
    raise UserError(
      f'config.recipe is "imported", but {folder or "config.init"} was not made by python -m '
      "xmr.import_run --pretrained; give such a folder as config.init, or as --workdir with "
      "--eval_only"
    )
  settings = found["settings"]
  config = config.copy_and_resolve_references()
  with config.unlocked():
    if config.data.image_size and not config.data.resize:
      # The same share of an image as in training.
      share = settings["data.resize"] / settings["data.image_size"]
      config.data.resize = round(config.data.image_size * share)
    config = filled(config, settings)
    # The values stay, even if that folder moves.
    config.recipe = "fixed"
    defaults = type(config.loss)()
    defaults.name = config.loss.name
    for name, value in found["loss"].items():
      if value is not None and name in config.loss and config.loss[name] == defaults[name]:
        config.loss[name] = value
  return config


def filled(config, settings):
  """Returns a config with the values of a flat dict, except an image size that it sets itself."""
  config = config.copy_and_resolve_references()
  open_fields = ("data.image_size", "data.resize")
  values = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in settings.items()
    if key not in open_fields or not config.data[key.removeprefix("data.")]
  }
  with config.unlocked():
    config.update_from_flattened_dict(values)
  return config


def example(config):
  """Returns a config whose open fields have arbitrary valid values."""
  if config.recipe == "by_size":
    return by_size(config, captions=1000)
  if config.recipe == "imported":
    return filled(config, {"data.image_size": 224, "data.resize": 224})
  return config
