"""Kernels for GPUs and TPUs: interpreted they equal the definition; compiled, without a device,
they move fewer bytes than what XLA makes of the same sums.
"""

import functools

import jax
import numpy as np
import pytest
import quick_compilation
import test_cdist

from xmr.bench import kernels
from xmr.ops import cdist, outer_sums
from xmr.plan import topology

BY = {"gpu": outer_sums.on_gpu, "tpu": outer_sums.on_tpu}


@pytest.mark.parametrize("term", test_cdist.VALUES)
def test_interpreted_kernels_equal_the_definition(term, monkeypatch):
  # Several tiles, the last of them not full, of either kernel.
  monkeypatch.setattr(outer_sums, "TPU_TILE", (16, 128, 16))
  n, m, dim = 33, 41, 130
  x, y, weight = (
    test_cdist.rows(i, *shape) for i, shape in enumerate([(n, dim), (m, dim), (m, n)])
  )
  y[0] = x[0]
  difference = x[:, None].astype(np.float64) - y[None]
  found = jax.jit(functools.partial(cdist.value_on_gpu, term, interpret=True))(x, y)
  expected = test_cdist.VALUES[term](difference).sum(axis=2)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  assert found[0, 0] == 0
  expected = (weight.T[..., None] * test_cdist.SLOPES[term](difference)).sum(axis=1)
  for kernel in BY.values():
    found = jax.jit(functools.partial(cdist.slopes_by, kernel, term, interpret=True))(weight, x, y)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_large_results_have_large_tiles():
  assert [outer_sums.gpu_tile(n, n) for n in (100, 1024, 4096)] == [32, 64, 128]


PROGRAM = """
%body (state: (f32[64,8], f32[8,8])) -> (f32[64,8], f32[8,8]) {
  %state = (f32[64,8], f32[8,8]) parameter(0)
  %rows = f32[64,8]{1,0} get-tuple-element(%state), index=0
  %sum = f32[8,8]{1,0} get-tuple-element(%state), index=1
  %next = f32[8,8]{1,0} fusion(%rows, %sum), kind=kLoop, calls=%add
  ROOT %out = (f32[64,8], f32[8,8]) tuple(%rows, %next)
}
%add (a: f32[64,8], b: f32[8,8]) -> f32[8,8] {
  %a = f32[64,8]{1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  %flat = f32[64,8]{1,0} bitcast(%a)
  %slice = f32[8,8]{1,0} dynamic-slice(%flat, %zero, %zero), dynamic_slice_sizes={8,8}
  ROOT %added = f32[8,8]{1,0} add(%slice, %b)
}
%enough (state: (f32[64,8], f32[8,8])) -> pred[] {
  ROOT %less = pred[] constant(true)
}
ENTRY %main (x: f32[64,8], y: f32[8,8]) -> f32[8,8] {
  %x = f32[64,8]{1,0} parameter(0)
  %y = f32[8,8]{1,0:T(8,128)S(1)} parameter(1)
  %both = (f32[64,8], f32[8,8]) tuple(%x, %y)
  %loop = (f32[64,8], f32[8,8]) while(%both), condition=%enough, body=%body, TRIPS
  %sum.1 = f32[8,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %twice = f32[8,8]{1,0} add(%sum.1, %y)
}
""".replace("TRIPS", 'backend_config={"known_trip_count":{"n":"5"}}')


def test_a_loop_moves_its_slices_and_sums_every_time_and_a_core_s_memory_is_free():
  # Five turns of a slice, the old sum and the new one; then a sum and a result.
  assert kernels.moved(PROGRAM) == 4 * 64 * (5 * 3 + 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x4", "h100:8"])
def test_compiled_kernels_move_less_than_xla_by_a_third_at_least(name):
  wanted = topology.parse(name)
  pytest.importorskip({"tpu": "libtpu", "cuda": "jax_cuda13_plugin"}[wanted.chip.platform])
  topology.prepare(wanted)
  quick_compilation.keep_from_libtpu()
  found = list(kernels.compared(topology.devices(wanted)[0], wanted.chip.platform))
  assert {case["name"] for case in found if "kernel" in case} >= {
    f"{sums}, gradient" for sums in kernels.TERMS
  }
  for case in found:
    assert case["xla"]["moved"] >= case["least"]
    if "kernel" in case:
      assert case["least"] <= 1.3 * case["kernel"]["moved"] <= case["xla"]["moved"]
