"""Recall by alignments of regions with words, beside the products that it cannot do without."""

from xmr.bench.cases import OURS, Case, Goal


def cases(*, quick):
  """Returns the one case: N images of R regions, five captions each of W words."""
  n_images, regions, words, dim = (40, 4, 6, 16) if quick else (1000, 16, 30, 256)
  here = "xmr.bench.alignment:"
  return [
    Case(
      name=f"{n_images} x {regions} with {5 * n_images} x {words} x {dim}",
      contenders={OURS: here + "ours", "products": here + "products"},
      arguments={"n_images": n_images, "regions": regions, "words": words, "dim": dim},
      products=2.0 * n_images * regions * 5 * n_images * words * dim,
      goals=()
      if quick
      else (Goal("ratio/products", at_least=1 / 3), Goal("extra_mb", at_most=500)),
    )
  ]


def tokens(n_images, regions, words, dim):
  """Returns (image, text: Tokens of unit rows, image_of_text [5 N]): captions of 8 to W words, each
  near a region of its image.
  """
  import numpy as np

  from xmr.ops.alignment import Tokens

  rng = np.random.default_rng(0)
  image = rng.normal(size=(n_images, regions, dim)).astype(np.float32)
  owner = np.arange(5 * n_images) // 5
  text = rng.normal(size=(5 * n_images, words, dim)).astype(np.float32)
  text *= 3
  for w in range(words):
    text[:, w] += image[owner, rng.integers(0, regions, len(owner))]
  for x in (image, text):
    x /= np.linalg.norm(x, axis=2, keepdims=True)
  length = rng.integers(min(8, words), words + 1, len(owner))
  length[0] = words
  return (
    Tokens(image, np.ones(image.shape[:2], bool)),
    Tokens(text, np.arange(words) < length[:, None]),
    owner,
  )


def ours(*, n_images, regions, words, dim):
  """eval.alignment.recall: both directions from one pass."""
  from xmr.eval.alignment import recall

  image, text, owner = tokens(n_images, regions, words, dim)
  return {"run": lambda: recall(image, text, owner, form="symmetric") and None}


def products(*, n_images, regions, words, dim):
  """All products of tokens alone, in blocks of the same size, with nothing kept."""
  import jax
  import jax.numpy as jnp

  from xmr.eval.token_scores import block_of

  image, text, _ = tokens(n_images, regions, words, dim)
  block = block_of(regions, words)

  @jax.jit
  def product(a, b):
    return jnp.matmul(a.reshape(-1, dim), b.reshape(-1, dim).T, precision=jax.lax.Precision.HIGHEST)

  def run():
    for c in range(0, len(text), block):
      b = jax.device_put(text.x[c : c + block])
      for r in range(0, len(image), block):
        product(jax.device_put(image.x[r : r + block]), b).block_until_ready()

  return {"run": run}
