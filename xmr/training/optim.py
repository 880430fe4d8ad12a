"""The optimiser: gradient clipping, Adam, the learning rate schedule, and frozen parameters."""

import re

import jax
import optax

from xmr.errors import UserError
from xmr.training import finetune


def schedule(optimizer, *, steps_per_epoch, total_steps):
  """Returns the learning rate as a function of the step.

  step: learning_rate * decay ** floor(epoch / decay_epochs), as released by VSE++ and IMC (0.1
  every 15 epochs); with decay_once the exponent is at most 1 (Full-HN). cosine: falls to zero at
  the last step. In the first warmup_steps the rate rises linearly.

  Args:
    optimizer: the section of the config.
    steps_per_epoch: int.  total_steps: int.
  """
  rate = optimizer.learning_rate
  if optimizer.schedule == "step":
    every = max(1, round(optimizer.decay_epochs * steps_per_epoch))
    count = 1 if optimizer.decay_once else total_steps // every
    rates = optax.piecewise_constant_schedule(
      rate, {every * (i + 1): optimizer.decay for i in range(count)}
    )
  elif optimizer.schedule == "cosine":
    rates = optax.cosine_decay_schedule(rate, max(1, total_steps))
  else:
    rates = optax.constant_schedule(rate)
  if not optimizer.warmup_steps:
    return rates
  return lambda step: rates(step) * jax.numpy.minimum(1.0, (step + 1) / optimizer.warmup_steps)


def paths(params):
  """Returns the tree with each leaf replaced by its path, "text_encoder/embedding" and the like."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
  )


def factors(params, multipliers):
  """Returns the tree of learning rate factors: the last multiplier whose regular expression matches
  within the path, else 1.

  Raises:
    UserError: an expression that matches in no parameter's path.
  """
  names = paths(params)
  for pattern, _ in multipliers:
    if not any(re.search(pattern, name) for name in jax.tree.leaves(names)):
      known = ", ".join(jax.tree.leaves(names)[:40])
      raise UserError(
        f"config.optimizer.multipliers: no parameter path contains {pattern!r}; paths: {known}"
      )
  return jax.tree.map(
    lambda name: next((f for p, f in reversed(multipliers) if re.search(p, name)), 1.0), names
  )


def make(optimizer, params, *, steps_per_epoch, total_steps, frozen=()):
  """Returns the optax transformation and its learning rate schedule.

  Args:
    optimizer: the section of the config.
    params: tree of parameters (or their shapes).
    steps_per_epoch: int.  total_steps: int.
    frozen: regular expressions of the paths of parameters that are not trained; these do not count
      in the clipped norm and have no moments.
  Returns:
    (optax.GradientTransformation, schedule).
  Raises:
    UserError: a multiplier that matches nothing.
  """
  rates = schedule(optimizer, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
  multipliers = tuple((p, f) for p, f in optimizer.multipliers)
  scale = jax.tree.map(
    lambda one, other: one * other,
    factors(params, multipliers),
    finetune.factors(params, optimizer.layer_decay),
  )
  names = paths(params)

  def kernels(tree):
    return jax.tree.map(lambda x: x.ndim > 1, tree)

  parts = []
  if optimizer.l2:
    # The gradient of l2 * |w|^2 is added before clipping, as for a penalty in the loss.
    parts.append(optax.add_decayed_weights(2 * optimizer.l2, mask=kernels))
  if optimizer.clip:
    parts.append(optax.clip_by_global_norm(optimizer.clip))
  if optimizer.name == "adam":
    parts.append(optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps))
  if optimizer.weight_decay:
    parts.append(optax.add_decayed_weights(optimizer.weight_decay, mask=kernels))
  parts.append(optax.scale_by_learning_rate(rates))
  labels = jax.tree.map(
    lambda name, factor: (
      "frozen" if factor == 0 or any(re.search(p, name) for p in frozen) else "trained"
    ),
    names,
    scale,
  )
  transform = optax.chain(*parts)
  if any(label == "frozen" for label in jax.tree.leaves(labels)):
    transform = optax.multi_transform({"trained": transform, "frozen": optax.set_to_zero()}, labels)
  if multipliers or optimizer.layer_decay != 1:
    transform = optax.chain(
      transform,
      optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, scale)),
    )
  return transform, rates
