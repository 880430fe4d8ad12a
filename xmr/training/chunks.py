"""Encodes a batch in parts: the loss is over all embeddings, activations take a part's memory."""

import jax
import jax.numpy as jnp


def encoded(model, variables, batch, *, chunks, key, tokens=False):
  """Encodes a batch for training, in one go or part by part.

  With K parts no activations are kept: each part is encoded once for its embeddings, and again when
  their gradient is known (GradCache). Embeddings, loss and gradient are those of the whole batch.
  Part k is rows k, k + K, ..., so that each device encodes a K-th of its own rows. Dropout has one
  key per part, the same in both encodings.

  Args:
    model: DualEncoder.  variables: of the model; differentiated.
    batch: dict of global arrays, B rows.
    chunks: int K, which divides B; 1 is the whole batch.
    key: of dropout.  tokens: True keeps the tokens of images and texts.
  Returns:
    image, text: [B, D] float32, or the encoders' Tokens.
    batch_stats: of the model after the batch; K > 1 does not change them.
  References:
    Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021.
  """

  def encode(variables, fields, key):
    rngs = {"dropout": key}
    method = "tokens" if tokens else "__call__"
    return model.apply(
      variables, fields, train=True, rngs=rngs, mutable=["batch_stats"], method=method
    )

  if chunks == 1:
    (image, text), updated = encode(variables, batch, key)
    return image, text, updated.get("batch_stats", {})

  def parts(x):
    return jnp.swapaxes(x.reshape(len(x) // chunks, chunks, *x.shape[1:]), 0, 1)

  def whole(x):
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])

  # The backward pass keeps nothing from inside and scans the parts once more.
  again = jax.checkpoint(
    lambda variables, fields, key: encode(variables, fields, key)[0], prevent_cse=False
  )
  _, (image, text) = jax.lax.scan(
    lambda _, part: (None, again(variables, *part)),
    None,
    (jax.tree.map(parts, batch), jax.random.split(key, chunks)),
  )
  image, text = jax.tree.map(whole, (image, text))
  return image, text, variables.get("batch_stats", {})
