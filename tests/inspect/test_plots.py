"""Pictures of embeddings say what the numbers say."""

import numpy as np

from xmr.inspect import plots


def embeddings():
  rng = np.random.default_rng(0)
  image = rng.normal(size=(6, 4))
  return image, np.repeat(image, 2, axis=0) + 0.01 * rng.normal(size=(12, 4)), np.arange(12) // 2


def test_the_map_shows_the_plane_of_points_that_lie_in_one():
  rng = np.random.default_rng(1)
  flat = rng.normal(size=(9, 2)) @ np.linalg.qr(rng.normal(size=(5, 2)))[0].T
  pictures, captions = plots.plane(flat[:4], flat[4:])
  placed = np.concatenate([pictures, captions])
  apart = np.linalg.norm(flat[:, None] - flat[None], axis=2)
  np.testing.assert_allclose(
    np.linalg.norm(placed[:, None] - placed[None], axis=2), apart, atol=1e-9
  )


def test_histograms_take_no_match_for_a_negative():
  image, text, image_of_text = embeddings()
  figure = plots.positives(image, text, image_of_text)
  labels = [label.get_text() for axis in figure.axes for label in axis.get_legend().get_texts()]
  assert labels == [
    "positive",
    "hardest negative",
    "best of the same image",
    "hardest negative",
    "nearest other image",
  ]
  # All positives are nearly 1, and no negative is.
  positive, negative = (
    sorted(patch.get_x() for patch in bars if patch.get_height())
    for bars in figure.axes[0].containers
  )
  assert positive[0] > 0.99 and negative[-1] < 0.99


def test_an_image_with_one_caption_has_no_other_text_of_its_own():
  image, text, image_of_text = embeddings()
  figure = plots.positives(image, text[::2], image_of_text[::2])
  assert sum(patch.get_height() for patch in figure.axes[1].containers[0]) == 0


def test_curves_matrix_and_map_draw():
  image, text, image_of_text = embeddings()
  runs = {"a": {"val/rsum": (np.array([1, 2]), np.array([3.0, np.nan]))}, "b": {}}
  for figure in (
    plots.curves(runs),
    plots.matrix(image @ text.T),
    plots.modality_map(image, text, image_of_text),
  ):
    assert plots.pixels(figure).std() > 1
  assert plots.curves(runs).axes[0].get_title() == "val/rsum"
