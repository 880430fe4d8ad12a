"""The formulas of the README's plan past one machine, against what the compiler says of eight
devices; `-s` prints both.

B rows of D floats per step on P devices. Compiled, never run.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
import test_scopes

from xmr import experiment, mining, parallel, train
from xmr.config import base_config

P, MIB = 8, 2**20
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}
COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def compiled_loss(form, name, *, batch, dim):
  """Returns loss and gradient of a batch, compiled for the eight devices."""
  mesh, config = parallel.mesh(), base_config()
  config.loss_form, config.loss.name = form, name
  loss, _ = experiment.losses_of(config, mesh)
  rows = jax.ShapeDtypeStruct((batch, dim), jnp.float32, sharding=parallel.sharded(mesh))
  ids = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=parallel.sharded(mesh))

  # Gradients leave as they came, row by row.
  out = ((parallel.replicated(mesh),) * 2, (parallel.sharded(mesh),) * 2)
  return (
    jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), out_shardings=out)
    .lower(rows, rows, ids)
    .compile()
  )


def moved(compiled):
  """Returns {kind: bytes that its operations move}, each counted once, in a loop too."""
  total = {}
  for result, kind in re.findall(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", compiled.as_text()):
    for type_, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
      # What a device has of a sum is one part of P; it sends the others.
      size = BYTES[type_] * (P if kind == "reduce-scatter" else 1)
      for n in filter(None, shape.split(",")):
        size *= int(n)
      total[kind] = total.get(kind, 0) + size
  return total


def temporary(compiled):
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["sum_of_hinges", "max_of_hinges", "info_nce", "sigmoid", "imc"])
def test_a_plain_loss_gathers_once_and_sends_no_gradient(name):
  batch, dim = 1024, 256
  rows, kinds = 4 * batch * dim, moved(compiled_loss("plain", name, batch=batch, dim=dim))
  print(f"{name}: moved {kinds} bytes, {rows} of rows")
  # Images and texts. Beside rows: some numbers a query.
  few = 32 * 4 * batch
  assert 2 * rows <= kinds.pop("all-gather") <= 2 * rows + few
  assert sum(kinds.values()) <= few


@pytest.mark.parametrize("batch, dim", [(4096, 512), (8192, 256)])
@pytest.mark.parametrize("name", ["max_of_hinges", "info_nce"])
def test_losses_take_the_memory_and_communication_of_the_plan(name, batch, dim):
  plain, ring = (compiled_loss(form, name, batch=batch, dim=dim) for form in ("plain", "ring"))
  rows, whole = 4 * batch * dim / P, 4 * batch * batch / P
  block = whole / P
  print(
    f"{name} B={batch} D={dim}: rows {rows / MIB:.1f}, B x B / P {whole / MIB:.1f}, block "
    f"{block / MIB:.1f} MiB"
  )
  for form, compiled in (("plain", plain), ("ring", ring)):
    gigaflops = compiled.cost_analysis()["flops"] / 1e9
    sizes = {kind: f"{size / MIB:.1f}" for kind, size in moved(compiled).items()}
    print(
      f"  {form}: temporary {temporary(compiled) / MIB:.1f} MiB, {gigaflops:.1f} GFLOP, moved "
      f"{sizes} MiB"
    )
  # Plain: 2 to 4 of [B / P, B], and 1 to 5 of the gathered [B, D].
  assert 2 * whole < temporary(plain) < 4.1 * whole + 5 * P * rows
  # Ring: 1 to 4 of [B / P, B / P], and 2 to 5 of [B / P, D].
  assert block + 2 * rows < temporary(ring) < 4.1 * block + 5 * rows + MIB
  # Ring: texts go around once forward, texts with their gradient once backward: 3 rows per turn, P
  # turns, 12 B D bytes.
  permuted = moved(ring)["collective-permute"]
  assert 3 * rows <= permuted < 3.2 * rows + MIB
  assert not any(
    size > 2 * MIB for kind, size in moved(ring).items() if kind != "collective-permute"
  )
  # Plain: images and texts gathered: 8 B D bytes.
  assert 2 * P * rows <= sum(moved(plain).values()) < 2.1 * P * rows + MIB


@pytest.mark.parametrize("name", ["max_of_hinges", "info_nce"])
def test_the_ring_at_16384_rows_needs_a_fifth_of_the_memory(name):
  plain, ring = (
    temporary(compiled_loss(form, name, batch=16_384, dim=1024)) for form in ("plain", "ring")
  )
  print(
    f"{name} B=16,384 D=1,024 P=8: temporary per device {plain / MIB:.0f} MiB plain, "
    f"{ring / MIB:.0f} MiB ring"
  )
  assert 5 * ring < plain


def test_products_take_the_operations_of_the_plan():
  batch, dim = 4096, 512
  once = 2 * batch * batch * dim / P
  plain, ring = (
    compiled_loss(form, "info_nce", batch=batch, dim=dim).cost_analysis()["flops"]
    for form in ("plain", "ring")
  )
  # Scores and two gradients, and the scores once more in the backward pass: of a device's texts in
  # plain form, of every block in a ring, of whose P turns the compiler counts one.
  assert 4 * once <= plain < 4.1 * once
  assert 4 * once / P <= ring < 4.4 * once / P


def compiled_mining(scope, images, block=256, width=64, dim=32):
  """Returns (compiled train step, rows of the pool's texts) with exact mining over so many images,
  two captions each.
  """
  split = test_scopes.make_split(images=images, width=(width, width))
  config = test_scopes.make_config(mining__scope=scope, mining__block=block, model__dim=dim)
  e = test_scopes.make_experiment(split, config, P)
  miner, pool, bank = mining.make(e)
  state = train.create_train_state(e.variables, e.transform, mesh=e.mesh, bank=bank)
  step = functools.partial(
    train.train_step, model=e.model, transform=e.transform, loss=e.loss, miner=miner
  )
  batch = parallel.shard(e.mesh, test_scopes.make_batch(split)[0])
  return jax.jit(step, donate_argnums=0).lower(state, batch, pool).compile()


@pytest.mark.parametrize(
  "scope, of_bank", [("train", 0), pytest.param("bank", 1, marks=pytest.mark.slow)]
)
def test_mining_holds_its_rows_once_over_all_devices_and_blocks_beside_them(scope, of_bank):
  width, dim = 64, 32
  compiled = [compiled_mining(scope, images, width=width, dim=dim) for images in (4096, 8192)]
  few, many = (each.memory_analysis() for each in compiled)
  # Features, the bank, and three numbers (id, owner) per row at most; 4,096 more images, twice as
  # many captions.
  more = 3 * 4096 * 4 * (width + of_bank * dim) / P
  grown = many.argument_size_in_bytes - few.argument_size_in_bytes
  ids = 3 * 4096 * 4 * 4
  print(
    f"{scope}: arguments grow by {grown:,} bytes per device, plan {more:,.0f} and ids; "
    f"temporary {few.temp_size_in_bytes:,} -> {many.temp_size_in_bytes:,}"
  )
  assert more <= grown <= more + ids
  assert many.temp_size_in_bytes - few.temp_size_in_bytes <= 4096
  # What moves does not grow with the rows: queries, the best answer of each device, and the rows
  # that are picked.
  first, second = (moved(each) for each in compiled)
  print(f"{scope}: moved {first} bytes")
  assert first == second
