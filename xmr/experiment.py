"""All parts of a run, built from its config and checked before anything is compiled."""

import dataclasses
import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import optax

from xmr import checkpoint, data, losses, models, parallel, recipe
from xmr import config as config_lib
from xmr.data import pipeline
from xmr.data import text as words
from xmr.errors import UserError
from xmr.fields import Config
from xmr.interop import subwords
from xmr.models.lora import Adapted, base
from xmr.ops.alignment import Tokens
from xmr.run_folder import begun, check_data, check_folder, check_length, imported
from xmr.terminal import home
from xmr.training import finetune, optim
from xmr.training.starting import starting_values


@dataclasses.dataclass
class Experiment:
  """The parts of a run."""

  config: Config
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  splits: dict[str, data.Split]
  digests: dict[str, str]  # of the splits
  vocabulary: data.Vocabulary | data.Subwords | None  # None for text features
  length: int | None  # words per caption in training batches
  model: models.DualEncoder | Adapted
  variables: dict  # starting values, NumPy; shapes alone where nothing is trained
  loss: losses.Bound
  warmup_loss: losses.Bound
  transform: optax.GradientTransformation
  rates: optax.Schedule
  steps_per_epoch: int
  total_steps: int
  warmup_steps: int

  @property
  def flat_config(self):
    """The config as {"data.name": value}."""
    return config_lib.flat(self.config)

  def run_record(self, best):
    """What a checkpoint says about its run, besides the arrays."""
    return {
      "config": self.flat_config,
      "vocabulary": None if self.vocabulary is None else json.loads(self.vocabulary.to_json()),
      "best": best,
      "data": self.digests,
    }

  @property
  def inputs(self):
    """Arrays that are needed to encode raw features as the run does; {} for none."""
    scale = next(iter(self.splits.values())).image_scale
    return {} if scale is None else {"image_scale": scale}

  def train_batches(self, start):
    """Returns an endless iterator of this process's training batches from a step on."""
    data_config = self.config.data
    return pipeline.train_batches(
      self.splits["train"],
      batch_size=self.config.batch_size,
      seed=self.config.seed,
      start=start,
      vocabulary=self.vocabulary,
      length=self.length,
      image_size=data_config.image_size,
      min_area=data_config.min_area,
      interpolation=data_config.interpolation,
      one_caption_per_image=data_config.one_caption_per_image,
      shard_index=jax.process_index(),
      shard_count=jax.process_count(),
      workers=data_config.workers,
      prefetch=data_config.prefetch,
    )


def prepare(config, workdir, *, eval_only=False):
  """Builds and checks all parts of a run: config, run folder, loss, data, vocabulary, model,
  starting values, optimiser.

  Args:
    config: of a file in configs/.
    workdir: folder of the run, made where it does not exist.
    eval_only: True where the run's checkpoint holds all values: neither GloVe nor pretrained
      weights are read.
  Returns:
    Experiment.
  Raises:
    UserError: anything wrong, before a training step is compiled.
  """
  home.expand(config)
  if config.recipe == "imported":
    config = recipe.imported(config, workdir if imported(workdir) else config.init)
  config_lib.validate(config)
  mesh = parallel.mesh()
  loss, warmup_loss = losses_of(config, mesh)
  splits = None
  if config.recipe == "by_size":
    # The rest of the config depends on the data; other data would give another config.
    splits, digests = loaded(config, workdir, eval_only=eval_only)
    captions = len(splits["train"].text_id)
    config = recipe.by_size(config, captions, devices=mesh.size)
    say(recipe.line(config, captions))
  check_folder(config, workdir)
  parallel.check_batch(mesh, config.batch_size, name="batch_size")
  check_chunks(config, mesh)
  if splits is None:
    splits, digests = loaded(config, workdir, eval_only=eval_only)
  # Who only scores may have no images to train on, or fewer than a batch.
  trained = splits.get("train", splits[config.evaluate.split])
  counted, steps_per_epoch = "train" in splits and not (eval_only and imported(workdir)), 1
  if counted:
    single = config.data.one_caption_per_image
    steps_per_epoch = pipeline.steps_per_epoch(
      trained, batch_size=config.batch_size, one_caption_per_image=single
    )
  total_steps = config_lib.in_steps(config, steps_per_epoch, name="config.")
  if counted:
    check_length(total_steps, workdir)
  vocabulary, length, vectors = vocabulary_of(
    config, splits, workdir, glove=not (eval_only or config.init)
  )
  model = models.build(
    config.model,
    vocabulary_size=None if vocabulary is None else len(vocabulary),
    word_vectors=vectors,
    base=base(config),
  )
  variables = starting_values(
    config,
    model,
    trained,
    vocabulary,
    length=length if length and isinstance(vocabulary, data.Subwords) else 4,
    scalars=loss.start(),
    shapes_only=eval_only,
  )
  if isinstance(model, Adapted) and not eval_only:
    say(model.line(variables["params"]))
  transform, rates = optim.make(
    config.optimizer,
    variables["params"],
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
    frozen=finetune.frozen(config, variables["params"]),
  )
  if loss.learned:
    transform = optax.chain(transform, loss.projection())
  return Experiment(
    config=config,
    workdir=pathlib.Path(workdir),
    mesh=mesh,
    splits=splits,
    digests=digests,
    vocabulary=vocabulary,
    length=length,
    model=model,
    variables=variables,
    loss=loss,
    warmup_loss=warmup_loss,
    transform=transform,
    rates=rates,
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
    warmup_steps=config_lib.in_steps(
      config.warmup, steps_per_epoch, name="config.warmup.", optional=True
    ),
  )


def check_chunks(config, mesh):
  """Raises UserError where a batch has no equal parts, or BatchNorm cannot use parts of a batch."""
  if config.batch_chunks == 1:
    return
  if config.batch_size % (config.batch_chunks * mesh.size):
    raise UserError(
      f"config.batch_chunks is {config.batch_chunks}; expected a divisor of the "
      f"{config.batch_size // mesh.size} rows per device of config.batch_size"
    )
  if config.model.image.get("batch_norm") == "released":
    raise UserError(
      "config.batch_chunks needs config.model.image.batch_norm=frozen: statistics of a part are "
      "not those of the batch"
    )


def say(line):
  """Prints a line where this is process 0."""
  if jax.process_index() == 0:
    print(line)


def loaded(config, workdir, *, eval_only=False):
  """Returns (splits of a config's data, their digests) and prints what was found; with eval_only
  the splits that are scored are enough.

  Raises:
    UserError: the data is wrong, lacks a split that the run needs, or differs from the data that
      the run in workdir was trained on; says what to do.
  """
  beside = (config.data.image_features, config.data.text_features, config.vocabulary.glove)
  beside += tuple(config.evaluate.get(name) for name in ("spice", "positives", "sts"))
  if config.data.name == "scenes" and config.data.dir and not any(beside):
    # A user who names a folder would take the results of the scenes for those of the folder.
    raise UserError(
      f"config.data.dir={config.data.dir}: config.data.name is scenes, which are rendered and read "
      "from no folder; expected a config of your data, such as configs/own.py, or "
      "configs/pretrained_flickr.py:own for imported towers"
    )
  splits = data.load(config)
  for line in getattr(splits, "lines", ()):
    say(line)
  needed = ("val",) * bool(config.evaluate.wise) if eval_only else ("train", "val")
  for name in (*needed, config.evaluate.split):
    if name not in splits:
      known = ", ".join(f"{len(part.image_id):,} {key}" for key, part in splits.items())
      raise UserError(
        f"config.data.dir: {config.data.dir or config.data.name} has no image of split {name} "
        f"({known}); expected {', '.join((*needed, config.evaluate.split))}. configs/own.py takes "
        "missing splits out of train"
      )
  digests = data.digests(splits)
  check_data(digests, workdir, where=config.data.dir or config.data.name)
  return splits, digests


def losses_of(config, mesh):
  """Returns the losses of the run and of its warm-up, which takes the parameters that both have."""
  parameters, learn = losses.table.parameters(config.loss), tuple(config.loss.learn)
  config_lib.FIELDS["warmup.loss"].check("config.warmup.loss", config.warmup.loss)
  own = losses.table.row(config.warmup.loss)
  warmup = {
    "learn": [name for name in learn if name in own.learn],
    **{name: value for name, value in parameters.items() if name in own.parameters},
  }
  # A wrong name or parameter is the same mistake in both forms.
  chosen = ((config.loss.name, {"learn": learn, **parameters}), (config.warmup.loss, warmup))
  plain = [losses.get(name, **settings) for name, settings in chosen]
  for loss in plain:
    try_out(loss)
  sent = config.loss_gather
  if config.loss_form == "plain":
    return tuple(over_devices(mesh, loss, sent=sent, scope=config.mining.scope) for loss in plain)
  if sent != "float32":
    raise UserError(f"config.loss_gather is {sent!r} but a ring gathers nothing; expected float32")
  return tuple(over_rows(mesh, losses.get_ring(name, **settings)) for name, settings in chosen)


def over_rows(mesh, bound):
  """Returns a loss over several devices, of `losses.get_ring`, as one on global arrays."""
  return dataclasses.replace(bound, function=parallel.over_rows(mesh, bound), parameters={})


def over_devices(mesh, loss, *, sent="float32", scope="batch"):
  """Returns a plain loss for a mesh; over several devices it runs in `jax.shard_map`.

  The compiler would send rows several times. In shard_map, rows are gathered once, and each device
  computes the gradient of its own. `sent`: the type in which rows are sent.  `scope`: of mining,
  which gathers the batch's rows for a loss of mined negatives.
  """
  row = losses.table.row(loss.name)
  able = row.ring or row.gathered
  mined = scope == "batch" and loss.chosen
  if sent != "float32" and not (able or mined):
    raise UserError(
      f"config.loss_gather is {sent!r} but loss {loss.name} gathers no rows; expected float32"
    )
  if mesh.size == 1 or not able:
    return loss
  learn = tuple(loss.learned)
  return over_rows(mesh, losses.get_ring(loss.name, gather=sent, learn=learn, **loss.parameters))


def tensors(tokens):
  """The tensors that a training step has for a loss, as shapes of four rows; tokens: True for rows
  of three tokens each.
  """
  rows = jax.ShapeDtypeStruct((4, 8), jnp.float32)
  if tokens:
    rows = jax.eval_shape(lambda: Tokens(jnp.zeros((4, 3, 8)), jnp.zeros((4, 3), bool)))
  return {
    **dict.fromkeys(("image", "text", "image_negative", "text_negative"), rows),
    **dict.fromkeys(("image_mask", "text_mask"), jax.ShapeDtypeStruct((4, 3), bool)),
    "match": jax.ShapeDtypeStruct((4, 4), bool),
    "image_id": jax.ShapeDtypeStruct((4,), jnp.int32),
    "image_found": jax.ShapeDtypeStruct((4,), bool),
    "text_found": jax.ShapeDtypeStruct((4,), bool),
    "same_pair": jax.ShapeDtypeStruct((4,), jnp.float32),
  }


def try_out(loss):
  """Traces a loss on a training step's tensors, so that a mistake shows now and not after the
  warm-up.

  Args:
    loss: Bound.
  Raises:
    UserError: a parameter of the loss has a wrong value, or the loss takes tensors that no dual
      encoder makes.
  """
  there = tensors(loss.tokens)
  missing = [name for name in loss.tensors.values() if name not in there]
  if missing:
    raise UserError(
      f"loss {loss.name} takes {', '.join(missing)}, which a dual encoder of images and texts does "
      "not make"
    )
  try:
    jax.eval_shape(functools.partial(loss.of, stored=loss.start()), there)
  except ValueError as error:
    raise UserError(
      f"loss {loss.name} does not take the embeddings of a dual encoder: {error}"
    ) from None


def vocabulary_of(config, splits, workdir, *, glove=True):
  """Returns (Vocabulary, words per caption, GloVe matrix or None), or three None for text features.

  A run that exists already, or that starts from another run, takes the vocabulary of the checkpoint
  and does not count words again; an imported run has its authors' vocabulary. Subwords replace it
  for a pretrained text tower, or where config.vocabulary.tokenizer names a folder.
  """
  if config.data.text != "words":
    return None, None, None
  source = workdir if begun(workdir) else config.init
  # Not vocabulary.json, which a user may have edited: row i of the word vectors is word i of this.
  counted = checkpoint.record(source)["vocabulary"] if source else None
  if counted is not None:
    vocabulary = data.vocabulary_from_json(json.dumps(counted), prompt=config.data.prompt)
    if source == config.init and isinstance(vocabulary, data.Vocabulary):
      vocabulary = extended(vocabulary, config, splits)
  elif config.vocabulary.tokenizer:
    content = subwords.read_for(
      config.vocabulary.tokenizer,
      encoder=config.model.text.name,
      context=config.model.text.get("positions") or config.data.max_length,
    )
    vocabulary = data.Subwords(content, prompt=config.data.prompt)
  else:
    vocabulary = data.build_vocabulary(
      splits, min_count=config.vocabulary.min_count, source=config.vocabulary.splits
    )
  if isinstance(vocabulary, data.Subwords):
    if config.vocabulary.glove:
      raise UserError("config.vocabulary.glove has vectors of words; this run has a tokenizer")
    return vocabulary, vocabulary.length(config.data.max_length), None
  longest = next(iter(splits.values())).max_length()
  # Columns that hold only <pad> would be computed at each step.
  length = min(config.data.max_length or longest, longest)
  if not (glove and config.vocabulary.glove):
    return vocabulary, length, None
  path = os.path.join(config.data.dir, config.vocabulary.glove)
  vectors, report = words.load_glove(
    path, vocabulary, seed=config.seed, missing=config.vocabulary.glove_missing
  )
  if vectors.shape[1] != config.model.text.word_dim:
    wanted = config.model.text.word_dim
    raise UserError(
      f"{path} has vectors of {vectors.shape[1]} numbers; config.model.text.word_dim is {wanted}"
    )
  if jax.process_index() == 0:
    print("GloVe: " + ", ".join(f"{key} {value}" for key, value in report.items()))
  return vocabulary, length, vectors


def extended(vocabulary, config, splits):
  """Returns the vocabulary of the run in config.init, and prints how many training words it lacks;
  with vocabulary.extend, those words are added.
  """
  tokens = splits["train"].tokens
  unknown, total = vocabulary.unknown(tokens)
  line = (
    f"vocabulary of {config.init}: {len(vocabulary):,} words; "
    f"{100 * unknown / max(1, total):.1f} % of the training words are unknown to it "
    f"({unknown:,} of {total:,})"
  )
  if config.vocabulary.extend:
    known = len(vocabulary)
    vocabulary = vocabulary.extended(tokens, config.vocabulary.min_count)
    unknown, _ = vocabulary.unknown(tokens)
    line += (
      f"; {len(vocabulary) - known:,} words are added, {100 * unknown / max(1, total):.1f} % stay "
      "unknown"
    )
  say(line)
  return vocabulary
