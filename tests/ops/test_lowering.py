"""What compiles depends on the target: its platform and its mesh, never on this process."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from xmr import losses, parallel
from xmr.ops import cdist, rnn, tiles

XMR = pathlib.Path(__file__).parents[2] / "xmr"
ROWS = jax.ShapeDtypeStruct((600, 16), jnp.float32)


def test_nothing_asks_the_process_where_it_runs():
  # parallel.mesh makes the mesh, topology one of devices that are not there; the others print what
  # the machine is.
  makes_or_prints = {
    *("parallel.py", "plan/topology.py"),
    *("main.py", "train.py", "eval/results.py"),
  }
  for path in XMR.rglob("*.py"):
    name = path.relative_to(XMR).as_posix()
    if name.startswith("bench/"):
      continue
    text = path.read_text()
    assert not re.search(r"\b(default_backend|(local_)?device_count|local_devices)\(", text), name
    assert name in makes_or_prints or "jax.devices(" not in text, name


@pytest.mark.parametrize("name", ["sum_of_hinges", "max_of_hinges", "imc"])
def test_a_loss_lowers_for_platforms_that_are_not_here(name):
  step = jax.jit(jax.value_and_grad(lambda *x: losses.LOSSES[name](*x)[0], (0, 1)))
  traced = step.trace(ROWS, ROWS)
  programs = {
    platform: traced.lower(lowering_platforms=(platform,)).as_text()
    for platform in ("cpu", "cuda", "tpu")
  }
  # The loops over tiles are for CPUs alone; the kernels of the L1 distance are not for CPUs.
  loops = {platform: text.count("stablehlo.while") for platform, text in programs.items()}
  assert loops["cpu"] > max(loops["cuda"], loops["tpu"])
  for platform, kernel in (("cuda", "__gpu$xla.gpu.triton"), ("tpu", "tpu_custom_call")):
    assert [kernel in programs[of] for of in ("cpu", platform)] == [False, name == "imc"]
  assert (programs["cuda"] == programs["tpu"]) == (name != "imc")


def test_kernels_can_be_left_out(monkeypatch):
  monkeypatch.setenv("XMR_KERNELS", "0")
  traced = jax.jit(lambda x: cdist.sum_over_features("absolute", x, x)).trace(ROWS)
  programs = {
    platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cuda", "tpu")
  }
  assert programs["cuda"] == programs["tpu"] and "custom_call" not in programs["cuda"]


def test_arrays_over_several_devices_are_not_cut_into_tiles():
  rows = jax.ShapeDtypeStruct(ROWS.shape, ROWS.dtype, sharding=parallel.sharded(parallel.mesh()))
  step = jax.jit(jax.value_and_grad(lambda *x: losses.max_of_hinges(*x)[0], (0, 1)))
  assert "stablehlo.while" not in step.lower(rows, rows).as_text()


def test_the_mesh_says_how_many_devices_share_an_array():
  mesh = parallel.mesh()
  x = np.ones((8, 2), np.float32)
  seen = {}

  def see(name, x):
    seen[name] = tiles.devices_of(x)
    return x

  jax.jit(lambda x: see("host", x))(x)
  jax.jit(lambda x: see("one", jnp.tanh(x)))(
    jax.device_put(x, parallel.sharded(parallel.mesh(jax.devices()[:1])))
  )
  jax.jit(lambda x: see("eight", jnp.tanh(x)[::-1]))(jax.device_put(x, parallel.sharded(mesh)))
  rows = PartitionSpec("data")
  inside = jax.shard_map(lambda x: see("inside", x), mesh=mesh, in_specs=rows, out_specs=rows)
  jax.jit(inside)(x)
  assert seen == {"host": 1, "one": 1, "eight": 8, "inside": 1}


def test_the_gradient_of_a_recurrent_layer_lowers_for_platforms_that_are_not_here():
  x, length = jax.ShapeDtypeStruct((6, 5, 3), jnp.float32), jax.ShapeDtypeStruct((6,), jnp.int32)
  weights = rnn.Weights(*(jnp.ones(shape) for shape in ((3, 16), (4, 16), (16,), (16,))))

  def total(weights, x, length):
    return jnp.sum(rnn.final_state(x, length, weights))

  traced = jax.jit(jax.grad(total)).trace(weights, x, length)
  programs = [
    traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda", "tpu")
  ]
  # Beside the loops: on CPUs each step reads in a computation of its own.
  cases = [program.count("stablehlo.case") for program in programs]
  assert cases[0] > cases[1] == cases[2]
