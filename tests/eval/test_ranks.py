"""Ranks and top-k against loops and sorts in float64, on inputs made to break rounding, ties and
block edges.
"""

import importlib
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from xmr import parallel
from xmr.errors import UserError
from xmr.eval import exact, ranks, similarity, top_k
from xmr.eval.top_k import top_k_of_both

# The package's name `similarity` is the function.
module = importlib.import_module("xmr.eval.ranks")
BLOCKS = (1, 3, 17, 64, 1000)


def whole_numbers(*shape, seed=0, low=-3, high=4):
  """Rows of small integers: every product sum is exact, so scores tie often and an oracle in any
  precision is right.
  """
  return np.random.default_rng(seed).integers(low, high, shape).astype(np.float32)


def unit_rows(n, width, seed=0):
  x = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def near_rows(n, width, seed=0):
  """Unit rows of which most differ from one of five by one rounding step in one entry."""
  rng = np.random.default_rng(seed)
  x = unit_rows(5, width, seed)[rng.integers(0, 5, n)]
  at = np.arange(n), rng.integers(0, width, n)
  x[at] = np.nextafter(x[at], rng.choice([-1, 1], n).astype(np.float32), dtype=np.float32)
  x[::7] = x[0]
  return x


def exact_scores(query, gallery, kind="dot"):
  pairs = np.indices((len(query), len(gallery))).reshape(2, -1)
  sides = exact.sides(query, gallery, kind=kind)
  return exact.pair_scores(*sides, *pairs, kind=kind).reshape(len(query), len(gallery))


def loop_ranks(scores, positives):
  out = []
  for row, own in zip(scores, positives, strict=True):
    own = {int(p) for p in np.atleast_1d(own) if p >= 0}
    best = max(row[p] for p in own)
    out.append(sum(1 for j, s in enumerate(row) if j not in own and s >= best))
  return np.array(out)


def test_exact_score_is_the_float64_product():
  query, gallery = unit_rows(20, 37), unit_rows(30, 37, seed=1)
  expected = query.astype(np.longdouble) @ gallery.T.astype(np.longdouble)
  np.testing.assert_allclose(
    exact_scores(query, gallery), expected.astype(np.float64), rtol=0, atol=1e-15
  )


@pytest.mark.parametrize("kind", exact.KINDS)
def test_exact_score_agrees_with_similarity(kind):
  query, gallery = 3 * unit_rows(9, 20), whole_numbers(11, 20)
  query[4] = 0
  scores = np.asarray(similarity(query, gallery, kind=kind))
  np.testing.assert_allclose(scores, exact_scores(query, gallery, kind), rtol=1e-5, atol=1e-5)


def test_ranks_equal_golden(golden):
  for name in ("recall_ranks_small", "recall_ranks_1k"):
    data = golden(name)
    n = len(data["image"])
    np.testing.assert_array_equal(
      ranks(data["image"], data["text"], np.arange(5 * n).reshape(n, 5)), data["i2t_ranks"]
    )
    np.testing.assert_array_equal(
      ranks(data["text"], data["image"], np.arange(5 * n) // 5), data["t2i_ranks"]
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_ranks_with_ties_equal_a_loop_for_every_block_size(block):
  query, gallery = whole_numbers(150, 4), whole_numbers(300, 4, seed=1)
  positives = np.random.default_rng(2).integers(-1, 300, (150, 3))
  positives[:, 1] = np.random.default_rng(3).integers(0, 300, 150)
  expected = loop_ranks(query @ gallery.T, positives)
  found = ranks(query, gallery, positives, kind="dot", block=block)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", exact.KINDS)
@pytest.mark.parametrize("block", (2, 64, 1000))
def test_neighbours_one_rounding_step_apart_rank_the_same_in_every_block(kind, block):
  query, gallery = near_rows(90, 33), near_rows(700, 33)
  positives = np.random.default_rng(4).integers(0, 700, 90)
  expected = loop_ranks(exact_scores(query, gallery, kind), positives)
  np.testing.assert_array_equal(ranks(query, gallery, positives, kind=kind, block=block), expected)


def test_float32_products_alone_would_get_the_neighbours_wrong():
  """The test above can fail: rounding does change these ranks."""
  query, gallery = near_rows(90, 33), near_rows(700, 33)
  positives = np.random.default_rng(4).integers(0, 700, 90)
  assert (
    loop_ranks(query @ gallery.T, positives) != loop_ranks(exact_scores(query, gallery), positives)
  ).any()


def test_duplicates_tie_exactly_wherever_they_stand():
  gallery = np.tile(unit_rows(40, 129), (13, 1))
  query = unit_rows(50, 129, seed=5)
  positive = np.random.default_rng(6).integers(0, 40, 50)
  expected = loop_ranks(exact_scores(query, gallery), positive)
  assert (expected >= 12).all()
  for block in BLOCKS:
    np.testing.assert_array_equal(ranks(query, gallery, positive, block=block), expected)
    np.testing.assert_array_equal(ranks(query, gallery, positive + 40 * 12, block=block), expected)


def test_a_model_that_maps_all_to_one_point_ranks_last():
  gallery = np.tile(unit_rows(1, 16), (200, 1))
  np.testing.assert_array_equal(ranks(gallery[:30], gallery, np.arange(30)), 199)
  np.testing.assert_array_equal(ranks(gallery[:3] * 0, gallery, np.arange(3)), 199)


@pytest.mark.parametrize("spread", (1e-3, 1e-6))
def test_a_nearly_collapsed_model_ranks_by_what_is_left(spread):
  rng = np.random.default_rng(7)
  query, gallery = ((1 + spread * rng.normal(size=(n, 64))).astype(np.float32) for n in (300, 1200))
  positives = rng.integers(0, 1200, 300)
  for kind in ("cosine", "dot"):
    expected = loop_ranks(exact_scores(query, gallery, kind), positives)
    np.testing.assert_array_equal(ranks(query, gallery, positives, kind=kind, block=128), expected)


def test_positives_that_score_equal_do_not_count_against_each_other():
  gallery = np.tile(unit_rows(1, 8), (6, 1))
  assert ranks(gallery[:1], gallery, [[0, 1, 2, -1]])[0] == 3
  assert ranks(gallery[:1], gallery, [[0, 1, 2, 2]])[0] == 3


@pytest.mark.parametrize("scale", (1e-30, 1e-12, 1e12, 1e30))
def test_scale_of_the_embeddings_does_not_matter(scale):
  query, gallery = whole_numbers(40, 6), whole_numbers(80, 6, seed=1)
  positives = np.arange(40)
  power = np.float32(2.0 ** np.round(np.log2(scale)))
  for kind in exact.KINDS:
    expected = ranks(query, gallery, positives, kind=kind)
    np.testing.assert_array_equal(
      ranks(query * power, gallery * power, positives, kind=kind), expected
    )


def test_rows_of_very_different_length_are_ranked_right():
  rng = np.random.default_rng(8)
  query, gallery = (
    unit_rows(60, 24),
    unit_rows(120, 24, seed=1) * 10.0 ** rng.uniform(-12, 12, (120, 1)).astype(np.float32),
  )
  positives = rng.integers(0, 120, 60)
  for kind in exact.KINDS:
    expected = loop_ranks(exact_scores(query, gallery, kind), positives)
    np.testing.assert_array_equal(ranks(query, gallery, positives, kind=kind), expected)


def test_unit_rows_are_not_divided_again():
  x = unit_rows(100, 300)
  assert (exact.Rows(x, name="x", kind="cosine").weight == 1).all()
  assert (exact.Rows(1.001 * x, name="x", kind="cosine").weight != 1).all()


def test_same_on_1_and_8_devices():
  query, gallery = near_rows(200, 40), near_rows(500, 40)
  positives = np.random.default_rng(9).integers(0, 500, 200)
  mesh = parallel.mesh()
  assert mesh.size == 8
  sharded = jax.device_put(query, NamedSharding(mesh, PartitionSpec("data")))
  gallery_sharded = jax.device_put(gallery[:496], NamedSharding(mesh, PartitionSpec("data")))
  assert module.mesh_of(sharded).size == 8
  np.testing.assert_array_equal(
    ranks(sharded, gallery, positives), ranks(query, gallery, positives)
  )
  positives %= 496
  np.testing.assert_array_equal(
    ranks(sharded, gallery_sharded, positives), ranks(query, gallery[:496], positives)
  )
  np.testing.assert_array_equal(top_k(sharded, gallery, 7)[1], top_k(query, gallery, 7)[1])


def test_text_queries_of_order_embeddings_keep_the_direction():
  text, image = np.abs(unit_rows(30, 6)), np.abs(unit_rows(50, 6, seed=1))
  scores = np.asarray(similarity(text, image, kind="order", text_query=True))
  np.testing.assert_allclose(scores, exact_scores(image, text, "order").T, rtol=1e-5, atol=1e-6)
  found = ranks(text, image, np.arange(30), kind="order", text_query=True)
  np.testing.assert_array_equal(
    found, loop_ranks(exact_scores(image, text, "order").T, np.arange(30))
  )
  best = top_k(text, image, 1, kind="order", text_query=True)[1][:, 0]
  np.testing.assert_array_equal(best, exact_scores(image, text, "order").argmax(0))


def test_blocks_of_a_sharded_query_are_on_all_devices(monkeypatch):
  seen, tile = [], module.tile_counts
  monkeypatch.setattr(
    module,
    "tile_counts",
    lambda query, *a, **k: seen.append(query.sharding) or tile(query, *a, **k),
  )
  sharded = jax.device_put(unit_rows(16, 4), NamedSharding(parallel.mesh(), PartitionSpec("data")))
  ranks(sharded, unit_rows(20, 4), np.arange(16))
  assert all(len(s.device_set) == 8 and not s.is_fully_replicated for s in seen)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("k", (1, 5, 299, 300))
def test_top_k_equals_a_stable_sort(k, block):
  query, gallery = whole_numbers(70, 4), whole_numbers(300, 4, seed=1)
  expected = np.argsort(-(query @ gallery.T), axis=1, kind="stable")[:, :k]
  scores, indices = top_k(query, gallery, k, kind="dot", block=block)
  np.testing.assert_array_equal(indices, expected)
  np.testing.assert_array_equal(scores, np.take_along_axis(query @ gallery.T, expected, axis=1))
  assert indices.dtype == np.int32 and scores.dtype == np.float32


@pytest.mark.parametrize("kind", exact.KINDS)
@pytest.mark.parametrize("block", (2, 64, 1000))
def test_top_k_of_neighbours_one_rounding_step_apart(kind, block):
  query, gallery = near_rows(40, 33), near_rows(700, 33)
  expected = np.argsort(-exact_scores(query, gallery, kind), axis=1, kind="stable")[:, :9]
  np.testing.assert_array_equal(top_k(query, gallery, 9, kind=kind, block=block)[1], expected)


def test_top_k_without_near_ties_never_scans_a_gallery(monkeypatch):
  monkeypatch.setattr(importlib.import_module("xmr.eval.top_k"), "_settled_rows", None)
  query, gallery = unit_rows(50, 64), unit_rows(2000, 64, seed=1)
  scores, indices = top_k(query, gallery, 10, block=100)
  expected = np.argsort(-exact_scores(query, gallery), axis=1, kind="stable")[:, :10]
  np.testing.assert_array_equal(indices, expected)
  assert (np.diff(scores, axis=1) <= 0).all()


def test_top_k_of_a_collapsed_model_is_the_first_items():
  gallery = np.tile(unit_rows(1, 16), (200, 1))
  np.testing.assert_array_equal(
    top_k(gallery[:5], gallery, 12, block=32)[1], np.tile(np.arange(12), (5, 1))
  )


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", exact.KINDS)
def test_both_directions_from_one_pass_are_those_of_two(kind, block):
  for make in (whole_numbers, near_rows):
    first, second = make(150, 6, seed=1), make(331, 6, seed=2)
    found = top_k_of_both(first, second, 9, kind=kind, block=block)
    expected = (
      top_k(first, second, 9, kind=kind),
      top_k(second, first, 9, kind=kind, text_query=True),
    )
    for mine, theirs in zip(found, expected, strict=True):
      np.testing.assert_array_equal(mine[1], theirs[1])
      np.testing.assert_array_equal(mine[0], theirs[0])
    for text_query in (False, True):
      alone = top_k_of_both(second, None, 9, kind=kind, text_query=text_query, block=block)[0]
      np.testing.assert_array_equal(
        alone[1], top_k(second, second, 9, kind=kind, text_query=text_query)[1]
      )


def test_a_pass_for_both_directions_names_what_is_wrong():
  x = unit_rows(9, 4)
  with pytest.raises(UserError, match="k is 10; expected 1 to 9"):
    top_k_of_both(x, None, 10)
  with pytest.raises(UserError, match="k is 6; expected 1 to 5"):
    top_k_of_both(x[:5], x, 6)
  with pytest.raises(UserError, match="second has NaN or infinity in row 3"):
    top_k_of_both(x, np.where(np.arange(9)[:, None] == 3, np.nan, x), 2)


def test_block_holds_little_beside_its_scores():
  block = (
    jax.ShapeDtypeStruct((512, 1024), np.float32),
    jax.ShapeDtypeStruct((2048, 1024), np.float32),
  )
  limits = [[jax.ShapeDtypeStruct((n,), np.float32)] * 2 for n in (512, 2048)]
  compiled = module.tile_counts.lower(
    *block, *limits, (512, 2048), order=False, both=True
  ).compile()
  scores = 512 * 2048 * 4
  assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * scores


@pytest.mark.slow
def test_recall_of_5000_by_25000_by_1024_takes_less_than_100_mb_above_the_embeddings():
  code = """
import numpy as np
from xmr.eval import recall
rng = np.random.default_rng(0)
image = rng.standard_normal((5000, 1024), dtype=np.float32)
text = np.repeat(image, 5, axis=0) + 3 * rng.standard_normal((25000, 1024), dtype=np.float32)
owner = np.arange(25000) // 5
recall(image[:500], text[:2500], owner[:2500])
def kilobytes(field):
  return int(open("/proc/self/status").read().split(field)[1].split()[0])
before = kilobytes("VmRSS:")
open("/proc/self/clear_refs", "w").write("5")
recall(image, text, owner)
print((kilobytes("VmHWM:") - before) / 1024)
"""
  if not pathlib.Path("/proc/self/clear_refs").exists():
    pytest.skip("peak memory is read from /proc")
  environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
  found = subprocess.run(
    [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
  )
  assert float(found.stdout) < 100


def test_bad_input_names_what_and_where():
  query, gallery = unit_rows(4, 3), unit_rows(6, 3)
  broken = gallery.copy()
  broken[4, 1] = np.nan
  with pytest.raises(UserError, match="gallery has NaN or infinity in row 4"):
    ranks(query, broken, np.arange(4))
  broken[4, 1] = np.inf
  with pytest.raises(UserError, match="query has NaN or infinity in row 4"):
    top_k(broken, gallery, 1)
  with pytest.raises(UserError, match=r"query has shape \(4, 3\) and gallery \(6, 2\)"):
    ranks(query, gallery[:, :2], np.arange(4))
  with pytest.raises(UserError, match=r"gallery has shape \(3,\)"):
    ranks(query, gallery[0], np.arange(4))
  with pytest.raises(UserError, match="kind is 'cos'; expected one of cosine, dot, order"):
    ranks(query, gallery, np.arange(4), kind="cos")
  with pytest.raises(UserError, match=r"k is 7; expected 1 to 6"):
    top_k(query, gallery, 7)
  with pytest.raises(UserError, match="block is 0"):
    ranks(query, gallery, np.arange(4), block=0)
  with pytest.raises(UserError, match=r"positives\[3\] holds 6; expected 0 to 5"):
    ranks(query, gallery, [0, 1, 2, 6])
  with pytest.raises(UserError, match="query 2 has no positive"):
    ranks(query, gallery, [0, 1, -1, 5])
  with pytest.raises(UserError, match=r"positives is int64 of shape \(3,\)"):
    ranks(query, gallery, [0, 1, 2])
  with pytest.raises(UserError, match="positives is float64"):
    ranks(query, gallery, [0.0, 1.0, 2.0, 3.0])


@pytest.mark.parametrize("factor", (1e-44, 1e-40, 1e-38, 1e38))
def test_cosine_ranks_rows_whose_inverse_norm_float32_cannot_hold(factor):
  query, gallery = unit_rows(40, 6), unit_rows(50, 6, seed=1)
  # Half of the rows on each side: one block holds all sizes.
  for x in (query, gallery):
    x[::2] = (x[::2].astype(np.float64) * factor).astype(np.float32)
  scores = exact_scores(query, gallery, kind="cosine")
  assert np.unique(scores).size > 100  # the rows have kept what makes them different
  own = np.arange(40)
  np.testing.assert_array_equal(ranks(query, gallery, own), loop_ranks(scores, own))
  np.testing.assert_array_equal(
    top_k(query, gallery, 7)[1], np.argsort(-scores, axis=1, kind="stable")[:, :7]
  )
