"""The values that a run starts from: fresh ones, another run's, or pretrained weights."""

import jax
import jax.numpy as jnp
import numpy as np

from xmr import checkpoint
from xmr.data import pipeline
from xmr.errors import UserError
from xmr.interop import weights
from xmr.models import lora

SHOWN = 8  # names in a line; an encoder has hundreds


def starting_values(config, model, split, vocabulary, *, length=4, scalars=None, shapes_only=False):
  """Returns the variables of step 0 as NumPy: another run's best, or fresh ones with pretrained
  backbones filled in. For adapters see `adapted`.

  `scalars` are {parameter: [] float32} that the loss learns, or None; those of another run are
  taken if it learned them with the same loss.
  """
  example = next(
    pipeline.train_batches(
      split,
      batch_size=1,
      seed=0,
      vocabulary=vocabulary,
      length=length,
      image_size=config.data.image_size,
    )
  )
  inputs = jax.random.key(config.seed), {k: jnp.asarray(v) for k, v in example.items()}
  if shapes_only or config.init:
    variables = jax.eval_shape(model.init, *inputs)
    if shapes_only:
      return with_scalars(variables, scalars)
    _, other, run = checkpoint.load(config.init)
    other = adapted(model, other, run["config"])
    if config.vocabulary.extend:
      fresh = jax.device_get(jax.jit(model.init)(*inputs))
      other = with_new_rows(other, fresh)
    learned = scalars
    if scalars and run["config"].get("loss.name") == config.loss.name:
      theirs = other["params"].get("loss", {})
      learned = {name: theirs.get(name, value) for name, value in scalars.items()}
    result = replace(variables, other, where=config.init)
    tell(result, other, learned, scalars, where=config.init)
    return with_scalars(result, learned)
  variables = jax.device_get(jax.jit(model.init)(*inputs))
  for side in ("image", "text"):
    path = config.model[side].weights
    if path:
      variables = weights.load_backbone(path, variables, encoder=f"{side}_encoder")
  return with_scalars(variables, scalars)


def with_scalars(variables, scalars):
  """Returns the variables with the parameters that the loss learns beside the encoders."""
  if not scalars:
    return variables
  return {**variables, "params": {**variables["params"], "loss": scalars}}


def tell(taken, other, learned, scalars, *, where):
  """Prints, in process 0, which values of another run were taken and which were left out."""
  if jax.process_index():
    return
  mine, theirs = checkpoint.flatten(taken), checkpoint.flatten(other)
  own = {f"params.loss.{name}" for name in scalars or {} if learned[name] is not scalars[name]}
  left = sorted(name for name in theirs if name not in mine and name not in own)
  line = f"config.init: {len(mine) + len(own)} arrays of {where} are taken"
  if own:
    line += f", {', '.join(sorted(own))} among them"
  if left:
    more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    line += f"; left behind, as this run has none of that name: {', '.join(left[:SHOWN])}{more}"
  print(line)


def adapted(model, other, config):
  """Returns another run's variables for this model.

  Adapters with the same rank, alpha and kernels stay; any others are merged into the kernels, and
  this model gets fresh ones.

  Args:
    model: of this run.  other: variables of the other run.  config: of the other run, flat.
  """
  mine = isinstance(model, lora.Adapted)
  if lora.ADAPTERS in other["params"]:
    rank, alpha, kernels = (config[f"model.lora.{name}"] for name in ("rank", "alpha", "kernels"))
    if mine and (rank, alpha, kernels) == (model.rank, model.alpha, model.kernels):
      return other
    other = {**other, "params": lora.merged(other["params"], scale=alpha / rank)}
  return model.with_adapters(other) if mine else other


def with_new_rows(other, fresh):
  """Returns another run's values with fresh rows added to its word embedding for an extended
  vocabulary.
  """
  theirs, mine = checkpoint.flatten(other), checkpoint.flatten(fresh)
  for name, rows in mine.items():
    old = theirs.get(name)
    if name.endswith("text_encoder.embedding") and old is not None:
      if old.shape[1:] == rows.shape[1:] and len(old) < len(rows):
        theirs[name] = np.concatenate([old, rows[len(old) :]])
  return checkpoint.unflatten(theirs, fresh)


def replace(variables, other, *, where):
  """Returns the variables with another run's values, all of which must exist in the same shape.

  Raises:
    UserError: a parameter is missing or has another shape.
  """
  mine, theirs = checkpoint.flatten(variables), checkpoint.flatten(other)
  wrong = [
    f"{name} is {np.shape(theirs[name]) if name in theirs else 'missing'}, expected "
    f"{np.shape(value)}"
    for name, value in mine.items()
    if name not in theirs or np.shape(theirs[name]) != np.shape(value)
  ]
  if wrong:
    raise UserError(
      f"config.init: the run {where} does not fit this model: {'; '.join(wrong[:10])}"
    )
  return checkpoint.unflatten(theirs, variables)
