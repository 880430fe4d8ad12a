"""Embeddings of a whole split: every image once, every caption once."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from xmr import parallel
from xmr.data import pipeline
from xmr.errors import UserError
from xmr.ops.alignment import BUDGET, NAMES, Tokens


@functools.partial(jax.jit, static_argnames=("model", "side", "tokens"))
def encode_batch(variables, batch, *, model, side, tokens=False):
  """Encodes one batch.

  Args:
    variables: of the model.
    batch: dict with `image` and, where there is one, `image_mask`, or with `text` and, for words,
      `text_length`.
    model: DualEncoder.
    side: "image" or "text".  tokens: True asks for tokens.
  Returns:
    [B, D] float32, or Tokens [B, N, D].
  """
  if side == "image":
    method = "image_tokens" if tokens else "encode_image"
    return model.apply(variables, batch["image"], batch.get("image_mask"), method=method)
  method = "text_tokens" if tokens else "encode_text"
  return model.apply(variables, batch["text"], batch.get("text_length"), method=method)


def encode_split(model, variables, split, *, config, mesh, vocabulary=None, side):
  """Encodes all images or all texts of a split.

  Args:
    model: DualEncoder.  variables: on the mesh.
    split: xmr.data.Split.
    config: of the run.  mesh: of parallel.mesh().
    vocabulary: for words.
    side: "image" or "text".
  Returns:
    [N, D] or [T, D] float32, on the host of every process, in the order of the split; where
    config.similarity is one of tokens, Tokens [N, R, D] or [T, W, D].
  Raises:
    UserError: tokens that take more memory than this machine has.
  """
  tokens = config.similarity in NAMES
  size = -(-config.eval_batch_size // mesh.size) * mesh.size
  shard = {"shard_index": jax.process_index(), "shard_count": jax.process_count()}
  if side == "image":
    batches = pipeline.image_batches(
      split,
      batch_size=size,
      image_size=config.data.image_size,
      resize=config.data.resize,
      fit=config.data.fit,
      interpolation=config.data.interpolation,
      workers=config.data.workers,
      **shard,
    )
    count = len(split.image_id)
  else:
    batches = pipeline.text_batches(split, batch_size=size, vocabulary=vocabulary, **shard)
    count = len(split.text_id)
  result: Any = None
  for batch in batches:
    batch = parallel.shard(mesh, batch)
    found = encode_batch(variables, batch, model=model, side=side, tokens=tokens)
    found = jax.tree.map(parallel.gather, found)
    rows = parallel.gather(batch["row"])
    if result is None:
      check_memory(found, count, side)
      result = jax.tree.map(lambda x: np.empty((count, *x.shape[1:]), x.dtype), found)
    for whole, part in zip(jax.tree.leaves(result), jax.tree.leaves(found), strict=True):
      whole[rows[rows >= 0]] = part[rows >= 0]
  return padded_as_trained(result, config)


def padded_as_trained(encoded, config):
  """Returns Tokens with padding in the maxima as in the loss; embeddings stay unchanged."""
  if not isinstance(encoded, Tokens):
    return encoded
  return dataclasses.replace(encoded, padding=config.loss.get("padding", "ignored"))


def check_memory(encoded, count, side):
  """Raises UserError where the tokens of a side are more than half of this machine's memory."""
  needed = count * sum(x.nbytes for x in jax.tree.leaves(encoded)) // len(encoded)
  there = parallel.host_memory()
  if isinstance(encoded, Tokens) and needed > there // 2:
    (_, number, dim), what = encoded.shape, {"image": "regions", "text": "words"}[side]
    raise UserError(
      f"the tokens of {count} {side}s, {number} {what} of {dim} numbers, take "
      f"{needed / 1e9:.1f} GB; this machine has {there / 1e9:.1f}: set config.model.dim lower"
    )


def check_step(experiment):
  """Raises UserError where a training step on tokens cannot fit, before anything is compiled.

  A step holds at least the tokens and their gradients, 8 B (R + W) D bytes, and the products of one
  image with one text, 4 R W bytes.

  Args:
    experiment: Experiment; reads the config, the training split, length, mesh and losses.
  """
  config, mesh = experiment.config, experiment.mesh
  if not (experiment.loss.tokens or experiment.warmup_loss.tokens):
    return
  features, size = experiment.splits["train"].image_features, config.data.image_size
  if features is None:
    regions = (size // config.model.image.patch) ** 2
  else:
    regions = features.shape[1]
  words = experiment.length
  pair = 4 * regions * words
  if pair > BUDGET:
    raise UserError(
      f"one image of {regions} regions and one text of {words} words have {pair / 1e6:.0f} MB of "
      f"products; expected at most {BUDGET / 1e6:.0f}: set config.data.max_length lower"
    )
  needed = 8 * config.batch_size * (regions + words) * config.model.dim // mesh.size
  there = parallel.memory_of(mesh)
  if there and needed > there:
    raise UserError(
      f"a step of {config.batch_size} images of {regions} regions and texts of {words} words, "
      f"tokens of {config.model.dim} numbers, takes more than {needed / 1e9:.1f} GB per device, "
      f"which has {there / 1e9:.1f}: set config.batch_size or config.model.dim lower"
    )


def over_devices(array, mesh):
  """Puts host embeddings on this process's devices of a mesh, over which `xmr.eval` splits scores.

  Args:
    array: [N, D], or Tokens.  mesh: of parallel.mesh().
  Returns:
    The array itself if it is Tokens, or if one device has the host's memory; else a jax.Array, its
    rows split over the devices where they divide evenly.
  """
  mesh = mesh.local_mesh
  devices = mesh.devices.reshape(-1)
  if isinstance(array, Tokens) or (len(devices) == 1 and parallel.on_host(devices)):
    return array
  sharding = parallel.sharded(mesh) if len(array) % mesh.size == 0 else parallel.replicated(mesh)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
