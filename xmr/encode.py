"""Embeddings of a whole split: every image once, every caption once."""

import functools

import jax
import numpy as np

from xmr import parallel
from xmr.data import pipeline


@functools.partial(jax.jit, static_argnames=("model", "side"))
def encode_batch(variables, batch, *, model, side):
  """Encodes one batch.

  Args:
    variables: of the model.
    batch: dict with `image`, or with `text` and, for words, `text_length`.
    model: DualEncoder.
    side: "image" or "text".
  Returns:
    [B, D] float32.
  """
  if side == "image":
    return model.apply(variables, batch["image"], method="encode_image")
  return model.apply(variables, batch["text"], batch.get("text_length"), method="encode_text")


def encode_split(model, variables, split, *, config, mesh, vocabulary=None, side):
  """Encodes all images or all texts of a split.

  Args:
    model: DualEncoder.  variables: on the mesh.
    split: xmr.data.Split.
    config: of the run.  mesh: of parallel.mesh().
    vocabulary: for words.
    side: "image" or "text".
  Returns:
    [N, D] or [T, D] float32, on the host of every process, in the order of the split.
  """
  size = -(-config.eval_batch_size // mesh.size) * mesh.size
  shard = {"shard_index": jax.process_index(), "shard_count": jax.process_count()}
  if side == "image":
    batches = pipeline.image_batches(
      split,
      batch_size=size,
      image_size=config.data.image_size,
      resize=config.data.resize,
      workers=config.data.workers,
      **shard,
    )
    count = len(split.image_id)
  else:
    batches = pipeline.text_batches(split, batch_size=size, vocabulary=vocabulary, **shard)
    count = len(split.text_id)
  result = None
  for batch in batches:
    batch = parallel.shard(mesh, batch)
    embeddings = parallel.gather(encode_batch(variables, batch, model=model, side=side))
    rows = parallel.gather(batch["row"])
    if result is None:
      result = np.empty((count, embeddings.shape[1]), np.float32)
    result[rows[rows >= 0]] = embeddings[rows >= 0]
  return result


def over_devices(array, mesh):
  """Puts host embeddings on this process's devices of a mesh: `xmr.eval` splits their scores.

  Args:
    array: [N, D].  mesh: of parallel.mesh().
  Returns:
    The array itself where there is one device; else a jax.Array, rows over the devices where they
    divide evenly.
  """
  mesh = mesh.local_mesh
  if mesh.size == 1:
    return array
  sharding = parallel.sharded(mesh) if len(array) % mesh.size == 0 else parallel.replicated(mesh)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
