"""The programs of a config, traced on shapes for a slice that is not there."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xmr import config as config_lib
from xmr import encode, experiment, mining, models, parallel, recipe, train
from xmr.data.split import Split
from xmr.errors import UserError
from xmr.eval import blocks, resident, token_scores
from xmr.models import lora
from xmr.ops.alignment import FORMS, Tokens
from xmr.plan import bound, least, shapes
from xmr.plan import topology as topologies
from xmr.training import finetune, optim


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


@dataclasses.dataclass(frozen=True)
class Call:
  """A program that can be compiled.

  Attributes:
    name, rows: as in bound.Program.
    parts: {what: bytes} that one device holds at least.
    trace: function that traces it.
  """

  name: str
  rows: int
  parts: dict[str, float]
  trace: Callable[[], Any]


def complete(config, sizes, devices):
  """Returns a config whose open fields are filled in as a run would: by the number of captions, or
  by the imported weights of config.init (without it those of the config's encoders).
  """
  if config.recipe == "by_size":
    return recipe.by_size(config, sizes.captions, devices=len(devices))
  if config.recipe == "imported":
    return recipe.imported(config, config.init) if config.init else recipe.example(config)
  return config


def compiled(config, topology, devices, sizes, *, kept=None, said=None):
  """Compiles the programs of a config for a slice, but for those that are too large at a glance.

  Args:
    config: validated.  topology: Topology.  devices: its devices.  sizes: sizes.Sizes.
    kept: {name: Program} that were compiled before.
    said: function of a program's name, a context in which it is compiled.
  Yields:
    bound.Program or least.TooLarge of each: training steps, encoding, a block of ranks.
  Raises:
    UserError: a batch that does not split over the devices.
  """
  mesh = parallel.mesh(devices)
  parallel.check_batch(mesh, config.batch_size, name="batch_size")
  experiment.check_chunks(config, mesh)
  for call in calls(config, mesh, sizes):
    if kept and call.name in kept:
      yield kept[call.name]
      continue
    if sum(call.parts.values()) > topology.chip.memory:
      yield least.TooLarge(call.name, call.rows, call.parts)
      # What else there is would be compiled for nothing.
      return
    with said(call.name) if said else contextlib.nullcontext():
      begun = time.perf_counter()
      traced = call.trace()
      executable = topologies.executable(traced, topology.chip.platform)
      seconds = time.perf_counter() - begun
    yield bound.of(
      call.name,
      traced,
      executable,
      rows=call.rows,
      parts=call.parts,
      topology=topology,
      compile_seconds=seconds,
    )


def calls(config, mesh, sizes):
  """Yields the Calls of a config: what a run compiles, in the order of a run."""
  plan, warmup_loss, transform, variables = parts(config, mesh, sizes)
  miner, pool, bank = mining.make(plan, put=shapes)
  place = shapes.split_over if config.shard_params else shapes.replicate
  params = place(mesh, variables["params"])
  state = train.TrainState(
    step=shapes.replicate(mesh, np.zeros((), np.int32)),
    params=params,
    batch_stats=shapes.replicate(mesh, variables.get("batch_stats", {})),
    opt_state=place(mesh, jax.eval_shape(transform.init, variables["params"])),
    bank=bank,
    average=params if config.evaluate.ema else None,
  )
  batch = shapes.shard(mesh, batch_of(config, sizes, config.batch_size))

  def step_of(loss):
    return train.compiled(
      options=parallel.compiler_options(mesh),
      transform=transform,
      model=plan.model,
      loss=loss,
      miner=miner,
      match=config.match,
      seed=config.seed,
      chunks=config.batch_chunks,
      ema=config.evaluate.ema,
      split_over=mesh if config.shard_params else None,
    )

  phases = {"training step": plan.loss}
  if config.warmup.epochs or config.warmup.steps:
    phases["warm-up step"] = warmup_loss
  for name, loss in phases.items():
    held = least.of_step(state, batch, pool, config, mesh, loss=loss)
    yield Call(
      name,
      config.batch_size,
      held,
      lambda loss=loss: step_of(loss).trace(state, batch, pool),
    )
  rows = -(-config.eval_batch_size // mesh.size) * mesh.size
  tokens = config.similarity in FORMS
  variables = shapes.replicate(mesh, state.variables)
  for side in ("image", "text"):
    part = shapes.shard(mesh, batch_of(config, sizes, rows))
    one = {key: x for key, x in part.items() if key.startswith(side) and not key.endswith("_id")}
    # The other side's encoder takes no part, and the compiler drops it.
    other = {"image": "text_encoder", "text": "image_encoder"}[side]
    own = {
      name: {key: x for key, x in tree.items() if key != other} for name, tree in variables.items()
    }
    yield Call(
      f"encoding {side}s",
      rows,
      {"parameters": least.per_device(own), "batch": least.per_device(one)},
      lambda one=one, side=side: encode.encode_batch.trace(
        variables, one, model=plan.model, side=side, tokens=tokens
      ),
    )
  if tokens:
    yield alignment_block(config, mesh, sizes)
  else:
    yield Call(
      "block of ranks",
      blocks.BLOCK * mesh.size,
      {},
      lambda: ranks_block(mesh, config.model.dim, config.similarity),
    )


def parts(config, mesh, sizes):
  """Returns (Plan, loss of the warm-up, optimiser, shapes of the variables) of a config."""
  loss, warmup_loss = experiment.losses_of(config, mesh)
  words = config.data.text == "words"
  vocabulary = sizes.vocabulary if words else None
  model = models.build(config.model, vocabulary_size=vocabulary, base=lora.base(config))
  length = (config.data.max_length or sizes.words) if words else None
  plan = Plan(config, mesh, {"train": split_of(config, sizes)}, None, length, model, loss)
  variables = jax.eval_shape(model.init, jax.random.key(0), batch_of(config, sizes, 2))
  variables = {**variables, "params": dict(variables["params"])}
  if loss.learned:
    variables["params"]["loss"] = loss.start()
  steps = max(1, sizes.captions // config.batch_size)
  transform, _ = optim.make(
    config.optimizer,
    variables["params"],
    steps_per_epoch=steps,
    total_steps=config_lib.in_steps(config, steps, name="config."),
    frozen=finetune.frozen(config, variables["params"]),
  )
  if loss.learned:
    transform = optax.chain(transform, loss.projection())
  return plan, warmup_loss, transform, variables


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
    if config.data[side] in ("features", "regions")
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
  images = {
    "pixels": shape((rows, side, side, 3), np.uint8),
    "features": shape((rows, sizes.image_width), np.float32),
    "regions": shape((rows, sizes.regions, sizes.image_width), np.float32),
  }
  batch = {
    "image": images[config.data.image],
    "image_id": shape((rows,), np.int32),
    "text_id": shape((rows,), np.int32),
  }
  if config.data.image == "regions" and config.data.image_mask:
    batch["image_mask"] = shape((rows, sizes.regions), bool)
  if config.data.text == "words":
    length = config.data.max_length or sizes.words
    return batch | {
      "text": shape((rows, length), np.int32),
      "text_length": shape((rows,), np.int32),
    }
  return batch | {"text": shape((rows, sizes.text_width), np.float32)}


def alignment_block(config, mesh, sizes):
  """Returns the Call of the alignments of a block, on one device."""
  words = config.data.max_length or sizes.words
  rows = token_scores.block_of(sizes.regions, words)

  def tokens(number):
    def of(shape, dtype) -> Any:  # A shape, in the place of an array.
      return shapes.on(parallel.replicated(mesh), shape, dtype)

    return Tokens(of((rows, number, config.model.dim), jnp.float32), of((rows, number), jnp.bool_))

  return Call(
    "block of alignments",
    rows,
    {},
    lambda: token_scores.of_block.trace(
      tokens(sizes.regions), tokens(words), form=config.similarity
    ),
  )


def ranks_block(mesh, dim, kind):
  """Traces the counts of a block of queries against a block of the gallery, as the devices of the
  mesh do it.
  """
  order = kind == "order"
  if resident.stays(mesh):
    block = blocks.BLOCK * mesh.size
    return ranks_around(mesh, block, 2 * block, dim, order=order)
  to_rows, to_columns = parallel.sharded(mesh), parallel.replicated(mesh)
  q, g = blocks.BLOCK * mesh.size, blocks.BLOCK * blocks.GALLERY_BLOCKS
  limits = lambda n, to: [shapes.on(to, (n,), jnp.float32)] * 2  # noqa: E731
  return blocks.tile_counts.trace(
    shapes.on(to_rows, (q, dim), jnp.float32),
    shapes.on(to_columns, (g, dim), jnp.float32),
    limits(q, to_rows),
    limits(g, to_columns),
    (q, g),
    order=order,
    both=True,
  )


def ranks_around(mesh, queries, items, dim, *, order=False):
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
    order=order,
    both=True,
    tile=tile,
    room=room,
  )
