"""The programs of a config, traced on shapes for a slice that is not there."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmr import config as config_lib
from xmr import encode, experiment, mining, models, parallel, train
from xmr.data.split import Split
from xmr.errors import UserError
from xmr.eval import blocks, resident, token_scores
from xmr.ops.alignment import FORMS, Tokens
from xmr.plan import bound, shapes
from xmr.training import finetune, optim


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What a plan has to know of a dataset."""

  images: int = 29_000
  captions: int = 145_000
  words: int = 40  # of a caption in a batch
  vocabulary: int = 10_000
  image_width: int = 2048  # numbers of an image's features, or of a region's
  regions: int = 36  # of an image
  text_width: int = 768


@dataclasses.dataclass(frozen=True)
class Plan:
  """The parts of a run, as shapes; what mining reads of an experiment."""

  config: Any
  mesh: jax.sharding.Mesh
  splits: dict[str, Split]
  vocabulary: Any
  length: int | None
  model: Any
  loss: Any


def compiled(config, topology, devices, sizes, *, say=lambda line: None):
  """Compiles the programs of a config for a slice.

  Args:
    config: validated.  topology: Topology.  devices: its devices.  sizes: Sizes.
    say: function of a line of progress.
  Yields:
    bound.Program of the training step, of encoding images and texts, and of a block of ranks.
  Raises:
    UserError: a batch that does not split over the devices.
  """
  mesh = parallel.mesh(devices)
  parallel.check_batch(mesh, config.batch_size, name="batch_size")
  for name, rows, trace in programs(config, mesh, sizes):
    say(f"compiling {name} for {topology.name}")
    begun = time.perf_counter()
    traced = trace()
    lowered = traced.lower(lowering_platforms=(topology.chip.platform,))
    executable = lowered.compile()
    seconds = time.perf_counter() - begun
    yield bound.of(name, traced, executable, rows=rows, topology=topology, compile_seconds=seconds)


def programs(config, mesh, sizes):
  """Yields (name, samples of a call, function that traces it)."""
  plan, transform = parts(config, mesh, sizes)
  example = batch_of(config, sizes, config.batch_size)
  variables = jax.eval_shape(plan.model.init, jax.random.key(0), batch_of(config, sizes, 2))
  if plan.loss.learned:
    variables["params"]["loss"] = plan.loss.start()
  miner, pool, bank = mining.make(plan, put=shapes)
  params = shapes.replicate(mesh, variables["params"])
  state = train.TrainState(
    step=shapes.replicate(mesh, np.zeros((), np.int32)),
    params=params,
    batch_stats=shapes.replicate(mesh, variables.get("batch_stats", {})),
    opt_state=shapes.replicate(mesh, jax.eval_shape(transform.init, variables["params"])),
    bank=bank,
    average=params if config.evaluate.ema else None,
  )
  step = train.compiled(
    transform=transform,
    model=plan.model,
    loss=plan.loss,
    miner=miner,
    match=config.match,
    seed=config.seed,
    chunks=config.batch_chunks,
    ema=config.evaluate.ema,
  )
  batch = shapes.shard(mesh, example)
  yield "training step", config.batch_size, lambda: step.trace(state, batch, pool)
  rows = -(-config.eval_batch_size // mesh.size) * mesh.size
  for side in ("image", "text"):
    part = shapes.shard(mesh, batch_of(config, sizes, rows))
    one = {key: x for key, x in part.items() if key.startswith(side)}
    yield (
      f"encoding {side}s",
      rows,
      lambda one=one, side=side: encode.encode_batch.trace(
        state.variables, one, model=plan.model, side=side, tokens=config.similarity in FORMS
      ),
    )
  if config.similarity in FORMS:
    yield alignment_block(config, mesh, sizes)
    return
  yield "block of ranks", blocks.BLOCK * mesh.size, lambda: ranks_block(mesh, config.model.dim)


def parts(config, mesh, sizes):
  """Returns (Plan, optimiser) of a config."""
  loss, _ = experiment.losses_of(config, mesh)
  words = config.data.text == "words"
  model = models.build(config.model, vocabulary_size=sizes.vocabulary if words else None)
  length = (config.data.max_length or sizes.words) if words else None
  plan = Plan(config, mesh, {"train": split_of(config, sizes)}, None, length, model, loss)
  shown = jax.eval_shape(model.init, jax.random.key(0), batch_of(config, sizes, 2))
  params = dict(shown["params"])
  if loss.learned:
    params["loss"] = loss.start()
  steps = max(1, sizes.captions // config.batch_size)
  transform, _ = optim.make(
    config.optimizer,
    params,
    steps_per_epoch=steps,
    total_steps=config_lib.in_steps(config, steps, name="config."),
    frozen=finetune.frozen(config.model, params),
  )
  return plan, transform


def split_of(config, sizes):
  """Returns a training split of the right shapes, whose features take no memory."""
  if sizes.captions < sizes.images:
    raise UserError(f"--captions is {sizes.captions}; expected at least --images={sizes.images}")
  image_of_text = (np.arange(sizes.captions, dtype=np.int64) * sizes.images) // sizes.captions
  features: dict[str, Any] = {
    f"{side}_features": np.broadcast_to(np.float32(0), (count, width))
    for side, count, width in (
      ("image", sizes.images, sizes.image_width),
      ("text", sizes.captions, sizes.text_width),
    )
    if config.data[side] == "features"
  }
  return Split(
    name="train",
    image_id=np.arange(sizes.images, dtype=np.int32),
    text_id=np.arange(sizes.captions, dtype=np.int32),
    image_of_text=image_of_text.astype(np.int32),
    image_names=[],
    texts=[],
    tokens=[],
    **features,
  )


def batch_of(config, sizes, rows):
  """Returns a batch of so many rows, as shapes (design: batch)."""
  shape = jax.ShapeDtypeStruct
  side = config.data.image_size
  image = {
    "pixels": shape((rows, side, side, 3), np.uint8),
    "features": shape((rows, sizes.image_width), np.float32),
    "regions": shape((rows, sizes.regions, sizes.image_width), np.float32),
  }
  batch = {
    "image": image[config.data.image],
    "image_id": shape((rows,), np.int32),
    "text_id": shape((rows,), np.int32),
  }
  if config.data.image == "regions" and config.data.image_mask:
    batch["image_mask"] = shape((rows, sizes.regions), np.bool_)
  if config.data.text == "words":
    length = config.data.max_length or sizes.words
    return batch | {
      "text": shape((rows, length), np.int32),
      "text_length": shape((rows,), np.int32),
    }
  return batch | {"text": shape((rows, sizes.text_width), np.float32)}


def alignment_block(config, mesh, sizes):
  """Returns (name, images, function that traces it) of the alignments of a block, on one device."""
  words = config.data.max_length or sizes.words
  rows = token_scores.block_of(sizes.regions, words)

  def tokens(number):
    def of(shape, dtype) -> Any:  # A shape, in the place of an array.
      return shapes.on(parallel.replicated(mesh), shape, dtype)

    return Tokens(of((rows, number, config.model.dim), jnp.float32), of((rows, number), jnp.bool_))

  return (
    "block of alignments",
    rows,
    lambda: token_scores.of_block.trace(
      tokens(sizes.regions), tokens(words), form=config.similarity
    ),
  )


def ranks_block(mesh, dim):
  """Traces the counts of a block of queries against a block of the gallery, as the devices of the
  mesh do it.
  """
  if resident.stays(mesh):
    return ranks_around(mesh, blocks.BLOCK * mesh.size, 2 * blocks.BLOCK * mesh.size, dim)
  to_rows, to_columns = parallel.sharded(mesh), parallel.replicated(mesh)
  q, g = blocks.BLOCK * mesh.size, blocks.BLOCK * blocks.GALLERY_BLOCKS
  limits = lambda n, to: [shapes.on(to, (n,), jnp.float32)] * 2  # noqa: E731
  return blocks.tile_counts.trace(
    shapes.on(to_rows, (q, dim), jnp.float32),
    shapes.on(to_columns, (g, dim), jnp.float32),
    limits(q, to_rows),
    limits(g, to_columns),
    (q, g),
    order=False,
    both=True,
  )


def ranks_around(mesh, queries, items, dim):
  """Traces a call of `resident.counts` for so many queries and items of dim numbers."""
  tile, sizes, room = resident.layout(queries, items, dim, block=blocks.BLOCK, devices=mesh.size)
  rows, limits = (
    [shapes.on(parallel.sharded(mesh), (n * mesh.size, *width), jnp.float32) for n in sizes]
    for width in ((dim,), ())
  )
  return resident.count_around.trace(
    *rows,
    [limits[0]] * 2,
    [limits[1]] * 2,
    (queries, items),
    mesh=mesh,
    order=False,
    both=True,
    tile=tile,
    room=room,
  )
