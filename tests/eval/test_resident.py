"""Ranks and candidates that stay on the devices equal those of blocks that the host sees, with
ties, duplicates, several calls, and lists that overflow. Processors stand in for accelerators.
"""

import importlib

import jax
import numpy as np
import pytest
from test_ranks import exact_scores, loop_ranks, near_rows, unit_rows

from xmr import parallel
from xmr.eval import blocks, exact, protocol, ranks, resident, top_k
from xmr.eval.graded import ranked_lists
from xmr.eval.positives import pairs_of

by_blocks = importlib.import_module("xmr.eval.ranks")
WIDTH = 24


def on_devices(x, count=8):
  mesh = parallel.mesh(jax.devices()[:count])
  return jax.device_put(x, parallel.replicated(mesh))


def collapsed(n, width):
  return np.tile(unit_rows(1, width), (n, 1))


ROWS = {"far": unit_rows, "near": near_rows, "equal": collapsed}


def example(rows, images=150):
  owner = np.arange(2 * images + 3) % images
  return ROWS[rows](images, WIDTH), ROWS[rows](len(owner), WIDTH), owner


@pytest.fixture
def keep(monkeypatch):
  """Returns a function that lets CPUs keep what they compute; it returns the list of how many near
  pairs came back of each call, None where they were too many.
  """

  def start(**sizes):
    came, brought = [], resident._brought

    def counted(*arguments):
      found = brought(*arguments)
      came.append(None if found[2] is None else len(found[2][1][0]))
      return found

    monkeypatch.setattr(parallel, "on_host", lambda devices: False)
    monkeypatch.setattr(resident, "_brought", counted)
    for name, value in sizes.items():
      monkeypatch.setattr(resident, name, value)
    return came

  return start


@pytest.mark.parametrize("kind", ["cosine", "order"])
@pytest.mark.parametrize("rows", ["far", "near", "equal"])
def test_recall_and_the_rank_of_each_query_are_those_of_the_host(rows, kind, keep):
  image, text, owner = example(rows)
  expected, of_query = protocol.counted(image, text, owner, kind=kind)
  came = keep()
  found, found_of_query = protocol.counted(on_devices(image), text, owner, kind=kind)
  assert found == expected and len(came) == 1
  for name, each in of_query.items():
    np.testing.assert_array_equal(found_of_query[name], each)


def test_calls_of_several_tiles_add_up(keep):
  image, text, owner = (
    unit_rows(1100, WIDTH),
    unit_rows(2300, WIDTH, seed=1),
    np.arange(2300) % 1100,
  )
  expected = protocol.counted(image, text, owner)
  # Tiles of 128 rows and 64 columns: two calls for the images, two for the texts, of 1 x 3 tiles.
  came = keep(GALLERY_BYTES=4 * WIDTH * 192, TILES=1)
  found = protocol.counted(on_devices(image), text, owner, block=32)
  assert found[0] == expected[0] and len(came) == 2 * 2
  np.testing.assert_array_equal(found[1]["t2i/rank"], expected[1]["t2i/rank"])
  # Hardly more than the positives themselves comes back.
  assert 2300 <= sum(came) < 2400


@pytest.mark.parametrize("count", [1, 8])
def test_ranks_equal_a_loop(count, keep):
  query, gallery = near_rows(40, 9), near_rows(90, 9)
  positives = np.random.default_rng(0).integers(-1, 90, (40, 3))
  positives[:, 0] = np.arange(40)
  expected = loop_ranks(exact_scores(query, gallery), positives)
  came = keep()
  pairs = pairs_of(positives, n_queries=40, n_gallery=90)
  rows = exact.sides(query, gallery, kind="cosine")
  mesh = parallel.mesh(jax.devices()[:count])
  found = by_blocks.count(*rows, pairs, kind="cosine", mesh=mesh, both=False)
  np.testing.assert_array_equal(found[0]["rank"], expected)
  if count == 8:
    np.testing.assert_array_equal(ranks(query, on_devices(gallery), positives), expected)
  assert None not in came and came


@pytest.mark.parametrize("room, overflows", [(150 * 303, False), (150 * 303 // 8, True), (3, True)])
def test_a_list_that_overflows_goes_back_to_the_blocks_of_the_host(room, overflows, keep):
  image, text, owner = example("equal")
  expected = protocol.counted(image, text, owner)
  # All pairs are near: the parts of the devices have 128 rows, so the second holds the last 22.
  came = keep(ROOM=room, LEAST_ROOM=room, SPARSE=1)
  found = protocol.counted(on_devices(image), text, owner)
  assert found[0] == expected[0] and (came == [None]) == overflows
  np.testing.assert_array_equal(found[1]["i2t/rank"], expected[1]["i2t/rank"])


@pytest.mark.parametrize("kind", ["cosine", "order"])
@pytest.mark.parametrize("rows", ["far", "near", "equal"])
def test_the_best_few_are_those_of_the_host(rows, kind, keep):
  query, gallery, _ = example(rows)
  expected = top_k(query, gallery, 9, kind=kind)
  keep()
  for name, a, b in zip(
    ("scores", "indices"), top_k(on_devices(query), gallery, 9, kind=kind), expected, strict=True
  ):
    np.testing.assert_array_equal(a, b, err_msg=name)


def test_the_best_few_of_several_calls(keep):
  query, gallery = unit_rows(1100, WIDTH), near_rows(2300, WIDTH)
  expected = top_k(query, gallery, 9)
  keep(GALLERY_BYTES=4 * WIDTH * 192, TILES=1)
  for a, b in zip(top_k(on_devices(query), gallery, 9, block=32), expected, strict=True):
    np.testing.assert_array_equal(a, b)


def test_lists_of_the_four_tasks_are_those_of_the_host(keep):
  image, text, _ = example("near", images=90)
  expected = ranked_lists(image, text, k=5, include_self=False)
  keep()
  found = ranked_lists(on_devices(image), on_devices(text), k=5, include_self=False)
  for task, lists in expected.items():
    np.testing.assert_array_equal(found[task], lists, err_msg=task)


def test_accelerators_keep_their_scores_and_processors_do_not():
  assert not resident.stays(None) and not resident.stays(parallel.mesh())
  assert blocks.mesh_of(np.zeros((2, 2)), jax.device_put(np.zeros(2), jax.devices()[0])) is None
  assert blocks.mesh_of(np.zeros((2, 2)), on_devices(np.zeros(2))).size == 8
