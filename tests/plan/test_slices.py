"""Losses, mining, GradCache and evaluation compiled for slices that are not there: what they hold
and move is what docs/clusters.md says.

Marked slow, and what takes minutes of a compiler `slices`: python -m pytest -m slices.
"""

import functools
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import pytest
import slices

from configs import fullhn_flickr, imc_scenes, teran_flickr
from xmr import experiment, losses, parallel
from xmr.config import base_config
from xmr.eval import blocks, resident
from xmr.mining import pool, scopes
from xmr.mining.table import SCOPES
from xmr.plan import __main__ as command
from xmr.plan import programs, topology
from xmr.plan import sizes as sizes_lib

pytestmark = pytest.mark.slow
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "clusters.md"
TPU, POD, GPU = "v5e:2x4", "v5e:16x16", "h100:8"
FIELDS = {
  "imc, cosine": {"distance": "cosine"},
  "imc, l1": {"distance": "l1"},
  "max_of_hinges, order": {"kind": "order"},
}
# Pairs of a step and numbers of an embedding.
SHAPES = {
  TPU: ((4096, 1024), (8192, 512)),
  GPU: ((4096, 1024), (8192, 512)),
  POD: ((32_768, 1024), (65_536, 1024)),
}
# What the compiler does otherwise than at other shapes; the page says so.
OTHERWISE = {
  (POD, 32_768, "max_of_hinges, order", "plain"): "3G + 6r",
  (POD, 32_768, "imc, l1", "ring"): "15r",
}
# A pod, a second shape and what is no product take the compiler for TPUs minutes.
MINUTES = pytest.mark.slices


def formulas():
  """{(loss, form): {slice or "rows": formula}} of the table in docs/clusters.md."""
  cells = (
    [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines()
  )
  rows = (row for row in cells if len(row) == 6 and row[1] in ("plain", "ring"))
  columns = GPU, TPU, POD, "rows"
  return {(row[0], row[1]): dict(zip(columns, row[2:], strict=True)) for row in rows}


FORMULAS = formulas()
MINED = ("hard_negative", "margin_hard_negative", "full_hard_negative")


def bytes_of(formula, *, batch, dim, devices):
  """Bytes of a formula of the page: G, W are all rows and a device's scores, r, b a device's rows
  and a block of scores.
  """
  rows, scores = 4 * batch * dim, 4 * batch * batch / devices
  names = {"G": rows, "r": rows / devices, "W": scores, "b": scores / devices, "max": max}
  return eval(re.sub(r"(\d) ?([GWrb])\b", r"\1*\2", formula), {"__builtins__": {}}, names)


def made_loss(mesh, name, form, *, batch, dim):
  """Value and gradient of a loss on a slice; gradients leave as they came, row by row."""
  config = base_config()
  config.loss_form, config.loss.name = form, name.split(",")[0]
  config.loss.update(FIELDS.get(name, {}))
  loss, _ = experiment.losses_of(config, mesh)
  rows, ids = (
    jax.ShapeDtypeStruct(shape, dtype, sharding=parallel.sharded(mesh))
    for shape, dtype in (((batch, dim), jnp.float32), ((batch,), jnp.int32))
  )

  def value(image, text, image_id):
    match = image_id[:, None] == image_id[None, :]
    tensors = {"image": image, "text": text, "image_id": image_id, "match": match}
    if config.loss.name in MINED:
      options, ids = pool.Options(None, mesh, {}, {}, {}, chosen=True), {"image_id": image_id}
      tensors |= scopes.in_batch(None, ids, tensors, {}, None, step=0, key=None, options=options)[0]
    return loss.of(tensors)

  out = ((parallel.replicated(mesh),) * 2, (parallel.sharded(mesh),) * 2)
  step = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True), out_shardings=out)
  return slices.Made(step.trace(rows, rows, ids), mesh)


def cases():
  for target, shapes in SHAPES.items():
    for batch, dim in shapes:
      for name, form in FORMULAS:
        long = target == POD or dim != 1024 or name in ("imc, l1", "max_of_hinges, order")
        yield pytest.param(
          target,
          batch,
          dim,
          name,
          form,
          id=f"{target}-{batch}-{name.replace(', ', '_')}-{form}",
          marks=MINUTES if long and (target != GPU or name == "imc, l1") else (),
        )


@pytest.mark.parametrize("target, batch, dim, name, form", list(cases()))
def test_a_loss_holds_and_moves_what_the_page_says(target, batch, dim, name, form):
  mesh = slices.mesh_of(target)
  made, row = made_loss(mesh, name, form, batch=batch, dim=dim), FORMULAS[name, form]
  made.stays_on_the_devices()
  sizes = {"batch": batch, "dim": dim, "devices": mesh.size}
  formula = OTHERWISE.get((target, batch, name, form), row[target])
  print(f"{target} {name} {form}: {made.peak:,} bytes, by the page {formula}")
  assert made.peak == pytest.approx(bytes_of(formula, **sizes), rel=0.1)
  # Of rows exactly what the formula says; beside them some numbers a pair.
  rows = bytes_of(row["rows"], **sizes)
  print(f"  sent {made.sent:,.0f}, rows {rows:,.0f}: {made.moved}")
  assert rows <= made.sent <= rows + 32 * 4 * batch
  if form == "ring":
    for height in (batch, batch // mesh.size):
      assert f"[{height},{batch}]" not in made.text and f"[{batch},{height}]" not in made.text


def step_of(mesh, config, **counts):
  """The training step of a config on a slice, and its state."""
  given = {name: default for name, (default, _) in sizes_lib.COUNTS.items()} | counts
  call = next(programs.calls(config, mesh, sizes_lib.Sizes(**given)))
  traced = call.trace()
  return call, slices.Made(traced, mesh), traced.args_info[0][0]


def linear(loss, scope, **fields):
  """A config of linear projections, whose negatives are mined in a scope."""
  config = fullhn_flickr.get_config("hn")
  config.loss.name, config.mining.scope = loss, scope
  config.model.dim = config.batch_size = 128
  config.update_from_flattened_dict(fields)
  return config


STEPS = [(name, "batch") for name in MINED] + [(MINED[0], name) for name in SCOPES]


@pytest.mark.parametrize("target", [TPU, GPU])
@pytest.mark.parametrize("loss, scope", sorted(set(STEPS)))
def test_a_step_with_mining_stays_on_the_slice(target, loss, scope):
  mesh, width = slices.mesh_of(target), 256
  counts = {"images": 4096, "captions": 8192, "image_width": width, "text_width": width}
  call, made, state = step_of(mesh, linear(loss, scope), **counts)
  made.stays_on_the_devices()
  made.takes_the_place_of(state)
  # Features of the training set, the owner of each row and where each id lies; a bank has
  # embeddings beside them.
  n, rows = 12_288, SCOPES[scope].rows
  held = 4 * n * (rows * (width + 1) + SCOPES[scope].bank * 128) / mesh.size + 8 * n
  assert call.parts["training set"] == held
  # Parameters and both moments; what a device holds of the set and the batch.
  arguments = 12 * 2 * width * 128 + rows * held + call.parts["batch"]
  assert made.memory["arguments"] == pytest.approx(arguments, rel=0.1)
  # Gradients of all parameters are summed; beside them the batch, and never the training set.
  gradients = 2 * 4 * 2 * width * 128 * (mesh.size - 1) / mesh.size
  assert gradients <= made.sent
  if scope != "released":  # Which takes whole rows of both sides, as its authors did.
    assert made.sent <= gradients + 3 * 4 * 128 * (width + 128)
  if scope == "batch":  # The rows of both sides once, and some numbers a pair.
    rows = 2 * 4 * 128 * 128 * (mesh.size - 1) / mesh.size
    assert rows <= made.sent - gradients <= rows + 32 * 4 * 128


@pytest.mark.parametrize("target", [TPU, GPU])
@pytest.mark.parametrize("variant", ["flickr8k_f_hn", "flickr8k_mh", "flickr8k_pooled"])
def test_a_step_on_tokens_stays_on_the_slice(target, variant):
  mesh, config = slices.mesh_of(target), teran_flickr.get_config(variant)
  config.model.dim = config.batch_size = 64
  counts = {"images": 512, "captions": 512, "words": 8, "vocabulary": 100, "regions": 6}
  _, made, state = step_of(mesh, config, image_width=128, **counts)
  made.stays_on_the_devices()
  made.takes_the_place_of(state)


@pytest.mark.parametrize("target", [TPU, GPU])
def test_gradients_of_a_batch_in_parts_are_summed_over_the_devices_once(target):
  mesh, config, width = slices.mesh_of(target), linear("max_of_hinges", "batch"), 256
  for side in (config.model.image, config.model.text):
    side.name, side.hidden, side.dropout = "mlp", 1024, 0.0
  config.loss_form, config.batch_size, config.batch_chunks = "ring", 1024 * mesh.size, 8
  call, made, state = step_of(mesh, config, image_width=width, text_width=width)
  made.stays_on_the_devices()
  made.takes_the_place_of(state)
  gradients = 2 * call.parts["parameters"] * (mesh.size - 1) / mesh.size
  rows = 3 * 4 * config.batch_size * config.model.dim
  assert gradients + rows <= made.sent <= 1.1 * (gradients + rows)


@functools.cache
def recurrent_step(target, chunks):
  """A step of a GRU on words, in parts of the batch."""
  mesh, config = slices.mesh_of(target), imc_scenes.get_config()
  config.loss.name, config.loss_form, config.model.dim = "max_of_hinges", "ring", 64
  config.model.text.name = "gru"
  config.batch_size, config.batch_chunks = 1024 * mesh.size, chunks
  call, made, state = step_of(mesh, config, words=8, vocabulary=64)
  made.stays_on_the_devices()
  made.takes_the_place_of(state)
  return call, made


@pytest.mark.parametrize("target", [TPU, GPU])
def test_parts_of_a_batch_take_a_part_of_the_activations(target):
  temporary = {chunks: recurrent_step(target, chunks)[1].memory["temporary"] for chunks in (1, 8)}
  print(f"{target}: temporary {temporary}")
  assert temporary[8] < temporary[1] / 4


@pytest.mark.parametrize("target", [TPU, GPU])
def test_gradients_of_a_recurrent_layer_in_parts_are_summed_over_the_devices_once(target):
  chunks, words = 8, 4 * 64 * 64
  call, made = recurrent_step(target, chunks)
  devices = slices.mesh_of(target).size
  once = 2 * (devices - 1) / devices
  gradients = once * call.parts["parameters"]
  # The compiler for TPUs sums the words' vectors, a scatter, in every part.
  again = once * words * (chunks - 1) if target == TPU else 0
  sums = sum(each.sent for each in made.moved if each.kind != "collective-permute")
  print(f"{target}: {sums:,.0f} bytes beside the ring, gradients {gradients:,.0f}")
  assert gradients <= sums <= 1.1 * gradients + again


ONE_TO_ONE = {
  "pairwise_similarity": ("scores", "positive"),
  "pair_cross_entropy": ("scores", "positive"),
  "fine_grained_similarity": ("scores", "positive", "hardness"),
}


@pytest.mark.parametrize("target", [TPU, GPU])
@pytest.mark.parametrize("name", ONE_TO_ONE)
def test_a_loss_of_scored_pairs_moves_sums_alone(target, name):
  mesh, loss = slices.mesh_of(target), losses.get(name)
  kinds = {"positive": jnp.bool_}
  pairs = [
    jax.ShapeDtypeStruct((4096,), kinds.get(x, jnp.float32), sharding=parallel.sharded(mesh))
    for x in ONE_TO_ONE[name]
  ]
  made = slices.Made(jax.jit(jax.value_and_grad(loss, has_aux=True)).trace(*pairs), mesh)
  made.stays_on_the_devices()
  assert made.sent <= 1024


@pytest.mark.parametrize("target", [TPU, GPU])
def test_ranks_of_half_a_million_stay_on_the_devices(target):
  mesh, (queries, items, dim) = slices.mesh_of(target), (100_000, 500_000, 1024)
  made = slices.Made(programs.ranks_around(mesh, queries, items, dim), mesh)
  made.stays_on_the_devices()
  print(f"{target}: {made.memory['peak']:,} bytes")
  assert made.memory["peak"] < 2 * 2**30
  # What comes back at most, lists full: a hundredth of a byte per pair.
  layout = resident.layout(queries, items, dim, block=blocks.BLOCK, devices=mesh.size)
  calls = -(-queries // (layout[1][0] * mesh.size)) * -(-items // (layout[1][1] * mesh.size))
  assert mesh.size * calls * made.memory["outputs"] < 0.01 * queries * items
  # The gallery's parts go around once.
  rows = 4 * layout[1][1] * mesh.size * dim
  assert rows <= made.sent <= 1.02 * rows


@pytest.mark.parametrize("target", [TPU, GPU])
def test_the_best_few_of_half_a_million_stay_on_the_devices(target):
  mesh, (queries, items, dim, keep) = slices.mesh_of(target), (100_000, 500_000, 1024, 33)
  tile, (rows, columns), _ = resident.layout(
    queries, items, dim, block=blocks.BLOCK, devices=mesh.size
  )

  def on(*shape, dtype=jnp.float32):
    shape = mesh.size * shape[0], *shape[1:]
    return jax.ShapeDtypeStruct(shape, dtype, sharding=parallel.sharded(mesh))

  best = on(rows, keep), on(rows, keep, dtype=jnp.int32)
  traced = resident.best_around.trace(
    best, on(rows, dim), on(columns, dim), (0, items), mesh=mesh, order=False, tile=tile
  )
  made = slices.Made(traced, mesh)
  made.stays_on_the_devices()
  made.takes_the_place_of(best)
  assert made.memory["peak"] < 2 * 2**30


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5p:2x2x1", "v6e:4x4", "a100:8", "b200:2x8"])
def test_a_slice_has_a_device_per_chip(name):
  assert slices.mesh_of(name).size == topology.parse(name).size


def test_what_cannot_fit_a_pod_is_said_in_seconds(tmp_path, capsys, monkeypatch):
  slices.mesh_of(POD)
  argv = ["xmr.plan", "--config=configs/fullhn_flickr.py:hn", f"--topology={POD}"]
  argv += ["--config.loss.name=info_nce", "--config.mining.scope=batch", "--captions=2000000"]
  argv += ["--config.batch_size=1048576", f"--config.data.cache_dir={tmp_path}"]
  monkeypatch.setattr("sys.argv", argv)
  begun = time.process_time()
  with pytest.raises(SystemExit, match="1"):
    command.main(argv)
  assert time.process_time() - begun < 10
  said = capsys.readouterr().out
  assert "scores 16 GiB" in said and "DOES NOT FIT, so nothing was compiled" in said


ENCODERS = {
  "ResNet-50": {"model.image.name": "resnet50"},
  "ResNet-152": {"model.image.name": "resnet152"},
  "CLIP ViT-B/16": {"model.image.name": "clip_vit"},
  "BiLSTM": {"model.text.name": "bilstm", "data.text": "words"},
}


def mib_of_rows():
  """{encoder: {"TPU", "GPU": MiB of a pair}} of the table in docs/clusters.md."""
  cells = (
    [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines()
  )
  rows = (row for row in cells if row[0] in ENCODERS)
  return {name: {"TPU": float(tpu), "GPU": float(gpu)} for name, tpu, gpu in rows}


def encoder_cases():
  for target in (TPU, POD, GPU):
    for name in ENCODERS:
      quick = target == GPU and name != "ResNet-152" or target == TPU and name == "BiLSTM"
      yield pytest.param(
        target, name, id=f"{target}-{name.split('/')[0]}", marks=() if quick else MINUTES
      )


@pytest.mark.parametrize("target, encoder", list(encoder_cases()))
def test_a_step_of_an_encoder_holds_what_the_page_says(target, encoder):
  mesh, config, pairs = slices.mesh_of(target), base_config(), 32
  config.data.image = config.data.text = "features"
  config.model.image.name = config.model.text.name = "linear"
  config.update_from_flattened_dict(ENCODERS[encoder])
  if config.model.image.name != "linear":
    config.data.image = "pixels"
  config.update_from_flattened_dict({"model.dtype": "bfloat16", "loss_form": "ring"})
  config.loss.name, config.batch_size = "max_of_hinges", pairs * mesh.size
  call, made, state = step_of(mesh, config)
  made.stays_on_the_devices()
  made.takes_the_place_of(state)
  parameters = call.parts["parameters"] + call.parts["optimiser"]
  print(f"{target} {encoder}: {made.memory}, parameters {parameters:,}, {made.moved}")
  activations = pairs * mib_of_rows()[encoder]["GPU" if target == GPU else "TPU"] * 2**20
  assert made.peak == pytest.approx(parameters + activations, rel=0.1)
  # Gradients are summed once, in bfloat16 where products make them, in float32 where a loop over
  # words does; the ring's rows go around thrice.
  gradients = call.parts["parameters"] * (mesh.size - 1) / mesh.size
  rows = 12 * config.batch_size * config.model.dim
  assert 0.95 * gradients <= made.sent - rows <= 2.02 * gradients
