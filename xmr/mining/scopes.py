"""Where the negatives of a triplet come from: the batch, the whole training set, a bank of its
embeddings, or a random draw.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from xmr import parallel
from xmr.errors import UserError
from xmr.fields import resolve
from xmr.mining import pool as pool_lib
from xmr.mining.table import SCOPES
from xmr.ops import ring
from xmr.ops.chosen import Chosen
from xmr.ops.similarity import similarity

OTHER = {"image": "text", "text": "image"}


def make(experiment, put=parallel):
  """Returns (miner, pool, bank) for the loss and the scope of a run, or (None, None, None) for a
  loss that takes no mined negatives.

  A miner is called as (variables, batch, tensors, pool, bank, *, step, key) and returns (negatives,
  bank). negatives is a dict of image_negative, text_negative [B, D] with gradient, or Chosen;
  image_found, text_found [B] bool, False for a query without an admissible negative (its hinges
  count as 0); and same_pair [B] float32, 1 where the mined text describes the mined image. Queries
  are the batch's own embeddings. A query never gets its own image or that image's captions.

  Args:
    experiment: Experiment; reads config.mining, splits["train"], model, mesh, loss.
    put: places arrays on the devices: `xmr.parallel`, or `xmr.plan.shapes` for shapes alone.
  Returns:
    miner: one of the functions below, bound.  pool: the rows that it chooses from, split over the
      devices.
    bank: embeddings of the pool, for scope bank.
  Raises:
    UserError: a scope or an option that has no meaning with the loss, the data or the scope; raised
      before anything is read.
  """
  config, mining = experiment.config, experiment.config.mining
  split, mesh = experiment.splits["train"], experiment.mesh
  takes_negatives = "image_negative" in experiment.loss.tensors.values()
  check(config, split, takes_negatives=takes_negatives)
  if takes_negatives and mining.scope != "batch" and experiment.loss.tokens:
    raise UserError(
      f"config.mining.scope is {mining.scope!r} but loss {config.loss.name} compares tokens; "
      "expected batch"
    )
  if not takes_negatives:
    return None, None, None
  scope = SCOPES[mining.scope]
  count = {"image": len(split.image_id), "text": len(split.text_id)}
  pool = {side: pool_lib.ids(mesh, getattr(split, f"{side}_id"), put) for side in OTHER}
  skip_width = {}
  if mining.skip_relevance:
    pool["skip"], skip_width = pool_lib.relevant(
      mesh, split, above=mining.skip_relevance, cache_dir=config.data.cache_dir
    )
  options = pool_lib.Options(
    experiment.model,
    mesh,
    count,
    {side: pool_lib.folds(config, split, side) for side in OTHER},
    skip_width,
    mining.rank,
    mining.semi_hard,
    mining.block,
    jnp.dtype(mining.dtype),
    mining.refresh_steps,
    experiment.loss.parameters.get("kind", "dot"),
    config.loss_gather,
    experiment.loss.chosen,
  )
  bank = None
  if scope.rows:
    pool["rows"] = pool_lib.place(
      mesh, split, experiment.vocabulary, length=experiment.length, put=put
    )
  if scope.bank:
    bank = {
      side: put.zeros(mesh, (len(rows["owner"]), config.model.dim), options.dtype)
      for side, rows in pool["rows"].items()
    }
  return functools.partial(resolve(scope.function), options=options), pool, bank


def check(config, split, *, takes_negatives):
  """Raises UserError where config.mining asks for what the loss, the data or the scope cannot
  give.
  """
  mining = config.mining
  if not takes_negatives:
    if mining.scope != "batch":
      raise UserError(
        f"config.mining.scope is {mining.scope!r} but loss {config.loss.name} takes no "
        "negatives; expected batch"
      )
    return
  scope = SCOPES[mining.scope]
  if scope.rows and split.image_features is None:
    raise UserError(
      f"config.mining.scope is {mining.scope!r} but config.data.image is 'pixels': the training "
      "set is mined from image "
      "features on the device; expected features, or scope batch"
    )
  for name in ("rank", "semi_hard", "skip_relevance"):
    if mining[name] and name not in scope.uses:
      raise UserError(
        f"config.mining.{name} is {mining[name]} but scope {mining.scope} does not use it"
      )
  n_images, batch = len(split.image_id), config.batch_size
  if mining.scope == "random" and n_images < 2 * batch:
    raise UserError(
      f"config.mining.scope is 'random' with {n_images} images; expected twice "
      f"config.batch_size, {2 * batch}"
    )
  if n_images * batch >= 1 << 31 and mining.scope == "released":
    raise UserError(
      f"config.mining.scope is 'released' with {n_images} x {batch} scores; expected fewer than "
      "2^31"
    )


def in_batch(variables, batch, tensors, pool, bank, *, step, key, options):
  """Takes the hardest negatives of the batch: i_n = argmax_j s(j, c) and c_n = argmax_j s(i, j)
  over pairs that do not match.

  Args:
    tensors: image [B, D], text [B, D] (or Tokens of B rows), match [B, B] bool or None.
  Returns:
    (negatives as of `make`, bank).
  """
  image, text, match = tensors["image"], tensors["text"], tensors["match"]
  if match is None:
    match = jnp.eye(len(image), dtype=bool)
  mesh = options.mesh
  apart = options.chosen and mesh.size > 1 and len(image) % mesh.size == 0
  every = {side: tensors[side] for side in OTHER}
  if apart:
    every = parallel.every_row(mesh, every, functools.partial(ring.all_rows, gather=options.sent))
  scores = lax.stop_gradient(similarity(image, every["text"], kind=options.kind))
  allowed = {side: ~match for side in OTHER}
  if "skip" in pool:
    rows = {side: pool_lib.row_of(pool[side], batch[f"{side}_id"]) for side in OTHER}
    marks = pool_lib.marked("of_image", rows["image"], options.count["text"], pool, options)
    allowed = {side: ~match & ~pool_lib.is_marked(marks, rows["text"]).T for side in OTHER}
  if options.semi_hard:
    limit = pool_lib.below(jnp.diagonal(scores), *lax.stop_gradient((image, text)))
    allowed["image"] &= scores < limit[None, :]
    allowed["text"] &= scores < limit[:, None]
  index, some = {}, {}
  for axis, side in enumerate(OTHER):
    best = pool_lib.best_of(
      jnp.where(allowed[side], scores, -jnp.inf), min(options.rank + 1, len(image)), axis=axis
    )
    found, some[side] = pool_lib.kth(*best, options.rank)
    index[side] = jnp.where(some[side], found, jnp.arange(len(image)))

  def chosen(side):
    return Chosen(every[side], index[side], mesh) if apart else tensors[side][index[side]]

  # Not `match`, which knows a pair alone where config.match is "pair".
  owner = jnp.asarray(batch["image_id"])
  return {
    "image_negative": chosen("image"),
    "text_negative": chosen("text"),
    "image_found": some["image"],
    "text_found": some["text"],
    "same_pair": (owner[index["image"]] == owner[index["text"]]).astype(jnp.float32),
  }, bank


def in_training_set(variables, batch, tensors, pool, bank, *, step, key, options):
  """Takes the hardest negatives of the whole training set under the current parameters.

  i_n = argmax_j s(f(x_j), c) over all images but the caption's own; c_n = argmax_j s(i, g(y_j))
  over the captions of other images; of equal scores the lowest row is taken. Every step encodes the
  set anew (without dropout), a block at a time on each device, and keeps only a running best. The
  mined rows are then encoded again, with gradient.

  References:
    Mallea et al., Discovery Science 2023; their notebooks except for the order of the image scores
    (see `as_released`).
  """
  fixed, queries = lax.stop_gradient((variables, tensors))
  index = {}
  for side, rows in pool["rows"].items():
    scores = pool_lib.scorer(fixed, side, queries[OTHER[side]], options)
    index[side] = pool_lib.hardest(side, scores, rows, batch, queries, pool, options)
  return negatives(variables, batch, tensors, pool, index, key, options), bank


def in_bank(variables, batch, tensors, pool, bank, *, step, key, options):
  """Works as `in_training_set`, with embeddings that are refreshed every `refresh_steps`.

  The bank is part of the training state, so a resumed run mines what an uninterrupted one would.
  """
  fixed, queries, old = lax.stop_gradient((variables, tensors, bank))
  bank = lax.cond(
    step % options.refresh_steps == 0,
    lambda old: {side: pool_lib.embedded(fixed, side, pool["rows"][side], options) for side in old},
    lambda old: old,
    old,
  )
  index = {}
  for side in OTHER:
    rows = {"embedding": bank[side], "owner": pool["rows"][side]["owner"]}
    scores = (
      {"query": queries[OTHER[side]]},
      functools.partial(pool_lib.product_of, options=options),
    )
    index[side] = pool_lib.hardest(side, scores, rows, batch, queries, pool, options)
  return negatives(variables, batch, tensors, pool, index, key, options), bank


def at_random(variables, batch, tensors, pool, bank, *, step, key, options):
  """Draws B images and B captions without replacement, excluding the batch's images and all their
  captions.

  References:
    Mallea et al. 2023, mode "random"; as released it excludes the batch's captions, but not the
    other captions of the same images.
  """
  in_use = (
    jnp.zeros(options.count["image"], bool)
    .at[pool_lib.row_of(pool["image"], batch["image_id"])]
    .set(True)
  )
  index = {}
  for side, stream in zip(OTHER, jax.random.split(key), strict=True):
    owner = pool["rows"][side]["owner"][: options.count[side]]
    lots = jnp.where(in_use[owner], -1.0, jax.random.uniform(stream, owner.shape))
    index[side] = lax.top_k(lots, len(batch["image_id"]))[1], jnp.ones(len(batch["image_id"]), bool)
  return negatives(
    variables, batch, tensors, pool, index, jax.random.fold_in(key, 2), options
  ), bank


def as_released(variables, batch, tensors, pool, bank, *, step, key, options):
  """Mines captions as `in_training_set`, and images through the notebooks' reshape, which makes
  them almost random.

  R = V T^T [N, B] scores all images against the batch's captions. The image of caption k is
  argmax_j reshape(R, [B, N])[k, j]. Cell [k, own image] of the reshaped matrix is excluded, which
  is the score of another pair. Only a few rows of R exist at a time.

  References:
    Mallea et al. 2023, `predict('t2i')` as released.
  """
  fixed, queries = lax.stop_gradient((variables, tensors))
  rows = pool["rows"]
  scores = pool_lib.scorer(fixed, "text", queries["image"], options)
  text = pool_lib.hardest("text", scores, rows["text"], batch, queries, pool, options)
  shared, score = pool_lib.scorer(fixed, "image", queries["text"], options)
  whole = lax.with_sharding_constraint(rows["image"], parallel.replicated(options.mesh))
  n, size = options.count["image"], len(batch["image_id"])
  width = min(n, -(-n // size) + 1)

  def one(query):
    k, own = query
    start = jnp.minimum(n * k // size, n - width)
    piece = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, width), whole)
    cells = lax.dynamic_slice_in_dim(score(shared, piece).reshape(-1), n * k - start * size, n)
    return jnp.argmax(jnp.where(jnp.arange(n) == own, -jnp.inf, cells)).astype(jnp.int32)

  own = pool_lib.row_of(pool["image"], batch["image_id"])
  image = lax.map(one, (jnp.arange(size, dtype=jnp.int32), own)), jnp.ones(size, bool)
  return negatives(
    variables, batch, tensors, pool, {"image": image, "text": text}, key, options
  ), bank


def negatives(variables, batch, tensors, pool, index, key, options):
  """Encodes the mined rows, with gradient and dropout; a query without a negative gets its own
  positive.

  Args:
    index: {"image", "text": (rows [B] int32, found [B] bool)}.
  Returns:
    {"image_negative", "text_negative": [B, D], "image_found", "text_found": [B] bool,
    "same_pair": [B] float32}.
  """
  result, owner = {}, {}
  for side, stream in zip(OTHER, jax.random.split(key), strict=True):
    chosen, found = index[side]
    rows = pool_lib.rows_at(pool["rows"][side], chosen, options)
    encoded = pool_lib.encode(variables, side, rows, options, train=True, rngs={"dropout": stream})
    result[f"{side}_negative"] = jnp.where(found[:, None], encoded, tensors[side])
    result[f"{side}_found"] = found
    owner[side] = jnp.where(found, rows["owner"], pool_lib.row_of(pool["image"], batch["image_id"]))
  return result | {"same_pair": (owner["image"] == owner["text"]).astype(jnp.float32)}
