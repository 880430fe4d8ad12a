"""The training set on the devices: its rows, their scores, and the hardest negatives."""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Bool, Float, Int32, Integer

from xmr import parallel
from xmr.eval.relevance import rouge_l_above
from xmr.ops.alignment import Tokens
from xmr.ops.arrays import Array
from xmr.ops.similarity import PRECISION
from xmr.ops.tiles import largest

# Scores and rows of the k best of each query so far.
Best = tuple[Float[Array, "k B"], Integer[Array, "k B"]]
PANEL = 256  # columns of a triangular product at a time
# Scores of equal rows differ by rounding of their sums: some units in the last place of the largest
# score that two rows can have.
ULPS = 32


class Options(NamedTuple):
  """What the miners of a run share."""

  model: nn.Module  # a dual encoder
  mesh: jax.sharding.Mesh
  count: dict[str, int]  # {"image": N, "text": T}, without padded rows
  folded: dict[str, bool]  # {"image": bool, "text": bool}: scored in the space of features
  skip_width: dict[str, int]  # {"of_image", "of_text"}: longest list of relevant items
  rank: int = 0
  semi_hard: bool = False
  block: int = 4096
  dtype: jax.typing.DTypeLike = jnp.float32
  refresh_steps: int = 100
  kind: str = "dot"  # of similarity
  sent: str = "float32"  # type of the batch's rows on their way to other devices
  chosen: bool = False  # whether the loss takes Chosen negatives


def hardest(side, scores, rows, batch, queries, pool, options):
  """Finds the hardest admissible row for every query, block by block on every device.

  Args:
    side: "image" or "text", of the rows.  scores: (shared, function) of `scorer`.
    rows: {"owner": [N'] int32, the image row that each belongs to, -1 for padding; and what the
      function reads}.
    batch, queries, pool, options: of the miner.
  Returns:
    (index [B] int32, found [B] bool): where no row was admissible, found is False and the index has
    no meaning. With fewer than rank + 1 admissible rows, the last of them is taken.
  """
  shared, score = scores
  images = row_of(pool["image"], batch["image_id"])
  shared = {"scores": shared, "owner": images}
  if options.semi_hard:
    # The positive is also scored as the rows hold it: dropout and old embeddings change it.
    own = images if side == "image" else row_of(pool["text"], batch["text_id"])
    of_rows = jnp.diagonal(score(shared["scores"], rows_at(rows, own, options)))
    positive = jnp.sum(queries["image"] * queries["text"], axis=1)
    shared["limit"] = below(jnp.minimum(positive, of_rows), queries["image"], queries["text"])
  if "skip" in pool:
    near = (
      ("of_text", row_of(pool["text"], batch["text_id"]))
      if side == "image"
      else ("of_image", images)
    )
    shared["marks"] = marked(*near, options.count[side], pool, options)
  count, size = options.rank + 1, len(images)

  def local(rows, shared, first):
    n = len(rows["owner"])
    block = min(options.block, n)

    def step(i, best):
      # The last block reaches back instead of being short; rows seen before are left out.
      start = jnp.minimum(i * block, n - block)
      piece = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, block), rows)
      row = start + jnp.arange(block, dtype=jnp.int32)
      value = score(shared["scores"], piece)
      new = (row >= i * block) & (piece["owner"] >= 0)
      allowed = new[:, None] & (piece["owner"][:, None] != shared["owner"][None, :])
      if "limit" in shared:
        allowed &= value < shared["limit"][None, :]
      if "marks" in shared:
        allowed &= ~is_marked(shared["marks"], first + row)
      return merged(best, jnp.where(allowed, value, -jnp.inf), first + row)

    none = jnp.full((count, size), -jnp.inf), jnp.zeros((count, size), jnp.int32)
    return lax.fori_loop(0, -(-n // block), step, none)

  value, index = (
    x.reshape(-1, size) for x in parallel.per_device(options.mesh, local, rows, shared)
  )
  # Devices hold rows in order, so that the first of equal scores is the lowest row.
  value, order = lax.top_k(value.T, count)
  return kth(value, jnp.take_along_axis(index.T, order, axis=1), options.rank)


def below(
  positive: Float[Array, " B"],
  image: Float[Array, "B D"] | Tokens,
  text: Float[Array, "B D"] | Tokens,
) -> Float[jax.Array, " B"]:
  """Returns the score below which a row is no copy of the positive, despite rounding.

  Args:
    positive: scores of the pairs.  image, text: their embeddings, or tokens.
  """
  if isinstance(image, Tokens) and isinstance(text, Tokens):
    a, b = (jnp.where(x.mask, jnp.linalg.norm(x.x, axis=2), 0) for x in (image, text))
    largest = jnp.sum(a, axis=1) * jnp.max(b, axis=1) + jnp.max(a, axis=1) * jnp.sum(b, axis=1)
  else:
    largest = jnp.linalg.norm(image, axis=1) * jnp.linalg.norm(text, axis=1)
  return jnp.subtract(positive, ULPS * jnp.finfo(positive.dtype).eps * largest)


def merged(best: Best, value: Float[Array, "n B"], row: Integer[Array, " n"]) -> Best:
  """Returns the k best of the best so far and the new rows; of equal scores, the lowest row.

  Args:
    best: scores and rows.  value: scores of the new rows.  row: their numbers, larger than all
      before.
  """
  count = len(best[0])
  if count == 1:
    top, first = largest(value, axis=0)
    better = top > best[0][0]
    return jnp.where(better, top, best[0][0])[None], jnp.where(better, row[first], best[1][0])[None]
  index = jnp.concatenate([best[1], jnp.broadcast_to(row[:, None], value.shape)])
  value, order = lax.top_k(jnp.concatenate([best[0], value]).T, count)
  return value.T, jnp.take_along_axis(index, order.T, axis=0)


def best_of(
  scores: Float[Array, "N M"], count: int, *, axis: int
) -> tuple[Float[jax.Array, "B k"], Int32[jax.Array, "B k"]]:
  """The `count` largest scores along an axis, descending, and their indices; ties go to the lowest
  index.
  """
  if count == 1:
    value, index = largest(scores, axis=axis)
    return value[:, None], index[:, None]
  value, index = lax.top_k(scores if axis else scores.T, count)
  return value, index


def kth(
  value: Float[Array, "B k"], index: Integer[Array, "B k"], rank: int
) -> tuple[Integer[jax.Array, " B"], Bool[jax.Array, " B"]]:
  """Picks the rank-th of descending candidates, or the last admissible one (above -inf) if there
  are fewer.

  Returns:
    (index, found).
  """
  admissible = jnp.sum(value > -jnp.inf, axis=1)
  column = jnp.clip(admissible - 1, 0, rank)
  return jnp.take_along_axis(index, column[:, None], axis=1)[:, 0], admissible > 0


def scorer(variables, side, query, options):
  """Returns (shared, function): function(shared, rows) gives the scores [n, B] float32 of rows of
  one side against queries [B, D].
  """
  if not options.folded[side]:

    def encoded(shared, rows):
      return product(encode(shared["variables"], side, rows, options), shared["query"], options)

    return {"variables": variables, "query": query}, encoded

  # s(x, q) = (x W) . q / |x W| = x . (W q) / |x R^T| with W^T = Q R: half the products, equal
  # up to rounding.
  kernel = variables["params"][f"{side}_encoder"]["projection"]["kernel"]
  lower = jnp.linalg.qr(kernel.T, mode="r").T
  shared = {"query": jnp.matmul(query, kernel.T, precision=PRECISION), "lower": lower}

  def in_features(shared, rows):
    x, lower = rows["x"].astype(jnp.float32), shared["lower"]
    square = 0.0
    for start in range(0, lower.shape[1], PANEL):
      part = jnp.matmul(x[:, start:], lower[start:, start : start + PANEL], precision=PRECISION)
      square += jnp.sum(part * part, axis=1)
    return product(x, shared["query"], options) / (jnp.sqrt(square) + 1e-12)[:, None]

  return shared, in_features


def folds(config, split, side):
  """Returns True where scores cost less in the space of features: for linear projections to at
  least F units, without bias and adapters.
  """
  section, features = config.model[side], getattr(split, f"{side}_features")
  return (
    section.name == "linear"
    and not section.bias
    and not config.model.lora.rank
    and config.model.normalize == "l2"
    and config.model.dtype == "float32"
    and features is not None
    and features.shape[1] <= config.model.dim
  )


def product(x, query, options):
  """Returns x [n, D] times query [B, D] as [n, B] float32, of operands in `mining.dtype`."""
  x, query = x.astype(options.dtype), query.astype(options.dtype)
  return jnp.matmul(x, query.T, precision=PRECISION, preferred_element_type=jnp.float32)


def product_of(shared, rows, *, options):
  """Scores rows by their known embeddings; a function as `scorer` returns."""
  return product(rows["embedding"], shared["query"], options)


def encode(variables, side, rows, options, **arguments):
  """Encodes rows of the pool into [n, D]; arguments go to the model's apply, such as rngs."""
  x, more = rows["x"], [rows[name] for name in ("length", "mask") if name in rows]
  if "length" not in rows:
    x = x.astype(jnp.float32)
  return options.model.apply(variables, x, *more, method=f"encode_{side}", **arguments)


def embedded(variables, side, rows, options):
  """Encodes all rows of the pool into [N', D] of `mining.dtype`, block by block on every device."""

  def local(rows, variables, first):
    n = len(rows["owner"])
    block = min(options.block, n)

    def step(i, done):
      start = jnp.minimum(i * block, n - block)
      piece = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, block), rows)
      return lax.dynamic_update_slice_in_dim(
        done, encode(variables, side, piece, options).astype(options.dtype), start, 0
      )

    width = jax.eval_shape(
      lambda: encode(variables, side, jax.tree.map(lambda x: x[:1], rows), options)
    ).shape[1]
    return lax.fori_loop(0, -(-n // block), step, jnp.zeros((n, width), options.dtype))

  done = parallel.per_device(options.mesh, local, rows, variables)
  return done.reshape(-1, done.shape[-1])


def rows_at(rows, index, options):
  """Returns rows [B, ...] of the pool by their numbers [B], wherever they lie."""

  def local(rows, index, first):
    row = index - first
    here = (row >= 0) & (row < len(rows["owner"]))
    pick = jnp.clip(row, 0, len(rows["owner"]) - 1)
    return jax.tree.map(
      lambda x: jnp.where(here.reshape(-1, *[1] * (x.ndim - 1)), x[pick], jnp.zeros((), x.dtype)),
      rows,
    )

  # One device has the row, the others zeros.
  return jax.tree.map(
    lambda x: jnp.any(x, axis=0) if x.dtype == bool else jnp.sum(x, axis=0, dtype=x.dtype),
    parallel.per_device(options.mesh, local, rows, index),
  )


def place(mesh, split, vocabulary, *, length, put=parallel):
  """Puts the training set on the devices, its rows split over them.

  Returns:
    {"image", "text": {"x", "owner", "length" where x are words, "mask" where regions have one}}.
  """
  text = split.text_features
  fields = {
    "image": {"x": split.image_features, "owner": np.arange(len(split.image_id))},
    "text": {"x": text},
  }
  if split.image_mask is not None:
    fields["image"]["mask"] = split.image_mask
  if text is None:
    fields["text"]["x"], fields["text"]["length"] = vocabulary.encode_split(split, length=length)
  fields["text"]["owner"] = split.image_of_text
  rows = {}
  for side, arrays in fields.items():
    arrays["owner"] = arrays["owner"].astype(np.int32)
    rows[side] = {
      name: put.shard_rows(
        mesh,
        x if x.dtype != np.float64 else x.astype(np.float32),
        fill=-1 if name == "owner" else 0,
      )
      for name, x in arrays.items()
    }
  return rows


def ids(mesh, numbers, put=parallel):
  """Returns {"number": sorted ids [N], "row": [N]} int32 on all devices, from which `row_of`
  reads.
  """
  order = np.argsort(numbers, kind="stable").astype(np.int32)
  return put.replicate(mesh, {"number": np.asarray(numbers, np.int32)[order], "row": order})


def row_of(known, numbers):
  """Returns the rows [B] int32 of ids [B]."""
  return known["row"][jnp.searchsorted(known["number"], numbers)]


def relevant(mesh, split, *, above, cache_dir):
  """Finds captions of other images whose ROUGE-L relevance is above a bound, once for a training
  set.

  Returns:
    {"of_image", "of_text": {"start": [N] or [T], "count", "item": [P]}} int32 on all devices: the
    captions above the bound for each image, and the images for each caption; and {"of_image",
    "of_text"}: the length of the longest list.
  """
  if jax.process_index() == 0:
    found = f"{len(split.texts):,} captions against {len(split.image_id):,} images"
    print(f"mining: ROUGE-L of {found}, kept in {cache_dir}", file=sys.stderr)
  pairs = rouge_l_above(
    split.texts, split.image_of_text, above=above, n_images=len(split.image_id), cache_dir=cache_dir
  )
  lists, widths = {}, {}
  for name, key, n in (("of_image", 1, len(split.image_id)), ("of_text", 0, len(split.texts))):
    count = np.bincount(pairs[:, key], minlength=n)
    item = pairs[np.argsort(pairs[:, key], kind="stable"), 1 - key]
    fields = {"start": np.cumsum(count) - count, "count": count, "item": np.append(item, 0)}
    lists[name] = {field: x.astype(np.int32) for field, x in fields.items()}
    widths[name] = max(1, int(count.max(initial=0)))
  return parallel.replicate(mesh, lists), widths


def marked(name, rows, total, pool, options):
  """Returns [ceil(total / 32), B] uint32: bit t of column b is set where item t is in list
  rows[b].
  """
  lists, words = pool["skip"][name], -(-total // 32)
  position = jnp.arange(options.skip_width[name])
  item = lists["item"][
    jnp.minimum(lists["start"][rows][:, None] + position, len(lists["item"]) - 1)
  ]
  word = jnp.where(position < lists["count"][rows][:, None], item >> 5, words)
  bit = jnp.uint32(1) << (item & 31).astype(jnp.uint32)
  # No bit is added twice, as no list names an item twice.
  return (
    jnp.zeros((words, len(rows)), jnp.uint32)
    .at[word, jnp.arange(len(rows))[:, None]]
    .add(bit, mode="drop")
  )


def is_marked(marks, items):
  """Returns [n, B] bool: the bits of some items [n]."""
  bit = (items & 31).astype(jnp.uint32)
  return (marks[jnp.minimum(items >> 5, len(marks) - 1)] >> bit[:, None] & 1).astype(bool)
