"""Scores of pairs: symmetric, foldable into a dot product, dropped out in training alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmr.eval import top_k
from xmr.models.graph import GraphEncoder, Laplacian
from xmr.models.siamese import PairScore, Siamese

WORDS, FEATURES = 5, 3
GRAPH = Laplacian(jnp.asarray([-1.0, -1.0]), jnp.asarray([1, 0]), jnp.asarray([0, 1, 2, 2, 2, 2]))


@pytest.fixture(scope="module")
def drawn():
  rng = np.random.default_rng(0)
  return rng.random((6, WORDS)).astype(np.float32), rng.normal(size=(4, FEATURES)).astype(
    np.float32
  )


def moved(params):
  """Starting values with every bias off zero."""
  return jax.tree.map(lambda x: x + 0.3, params)


def test_similarity_of_two_texts_does_not_depend_on_their_order(drawn):
  texts, _ = drawn
  model = Siamese(encoder=GraphEncoder(dim=8))
  first, second = jnp.asarray([0, 1, 2]), jnp.asarray([3, 4, 2])
  variables = {
    "params": moved(model.init(jax.random.key(0), texts, GRAPH, first, second)["params"])
  }
  forward = model.apply(variables, texts, GRAPH, first, second)
  np.testing.assert_allclose(
    forward, model.apply(variables, texts, GRAPH, second, first), rtol=1e-6
  )
  encoded = model.apply(variables, texts, GRAPH, method="encode")
  everything = model.apply(variables, encoded, encoded, method="all_pairs")
  np.testing.assert_allclose(forward, everything[first, second], rtol=1e-5)


def test_score_is_a_dot_product_of_two_embeddings_and_a_constant(drawn):
  texts, images = drawn
  model = PairScore(text=GraphEncoder(dim=8))
  of_text, of_image = (x.ravel() for x in jnp.meshgrid(jnp.arange(6), jnp.arange(4), indexing="ij"))
  variables = {
    "params": moved(
      model.init(jax.random.key(0), texts, GRAPH, images, of_text, of_image)["params"]
    )
  }
  scores = model.apply(variables, texts, GRAPH, images, of_text, of_image).reshape(6, 4)
  text = model.apply(variables, texts, GRAPH, method="encode_text")
  image = model.apply(variables, images, method="encode_image")
  difference = scores - text @ image.T
  np.testing.assert_allclose(difference, np.full((6, 4), difference[0, 0]), atol=1e-5)
  assert abs(difference[0, 0]) > 0.1
  _, found = top_k(np.asarray(text), np.asarray(image), 4, kind="dot")
  np.testing.assert_array_equal(found, np.argsort(-np.asarray(scores), axis=1))


@pytest.mark.parametrize("normalize", ["none", "text", "both"])
def test_normalized_sides_have_a_mean_square_of_one(drawn, normalize):
  texts, images = drawn
  model = PairScore(text=GraphEncoder(dim=8), normalize=normalize)
  pairs = jnp.arange(4), jnp.arange(4)
  variables = {
    "params": moved(model.init(jax.random.key(0), texts, GRAPH, images, *pairs)["params"])
  }
  text = (
    model.apply(variables, texts, GRAPH, method="encode_text")
    / variables["params"]["head"]["kernel"]
  )
  image = model.apply(variables, images, method="encode_image")
  for side, unit in ((text, normalize != "none"), (image, normalize == "both")):
    squares = np.mean(np.square(side), axis=1)
    assert np.allclose(squares, 1, atol=1e-3) == unit
  scores = model.apply(variables, texts, GRAPH, images, *pairs)
  folded = np.sum((text * variables["params"]["head"]["kernel"])[:4] * image, axis=1)
  np.testing.assert_allclose(scores, folded + variables["params"]["head"]["bias"], rtol=1e-5)


def test_a_smaller_start_of_the_head_scales_the_first_scores_alone(drawn):
  texts, images = drawn
  pairs = jnp.arange(4), jnp.arange(4)
  scores = []
  for start in (1.0, 0.01):
    model = PairScore(text=GraphEncoder(dim=8), head_start=start)
    scores.append(
      model.apply(
        model.init(jax.random.key(0), texts, GRAPH, images, *pairs), texts, GRAPH, images, *pairs
      )
    )
  np.testing.assert_allclose(scores[1], scores[0] / 100, rtol=1e-4)


def test_few_pairs_of_many_rows_score_as_in_the_grid(drawn):
  texts, images = drawn
  model = PairScore(text=GraphEncoder(dim=8, activation="relu"))
  variables = {
    "params": moved(
      model.init(jax.random.key(0), texts, GRAPH, images, *[jnp.arange(4)] * 2)["params"]
    )
  }
  grid = [x.ravel() for x in jnp.meshgrid(jnp.arange(6), jnp.arange(4), indexing="ij")]
  everything = model.apply(variables, texts, GRAPH, images, *grid).reshape(6, 4)
  few = model.apply(variables, texts, GRAPH, images, jnp.asarray([5, 0]), jnp.asarray([1, 3]))
  np.testing.assert_allclose(few, everything[jnp.asarray([5, 0]), jnp.asarray([1, 3])], rtol=1e-5)


@pytest.mark.parametrize("name", ["dropout", "unit_dropout", "image_dropout"])
def test_dropout_acts_in_training_alone(drawn, name):
  texts, images = drawn
  model = PairScore(text=GraphEncoder(dim=64), **{"dropout": 0.0, name: 0.5})
  pairs = jnp.arange(4), jnp.arange(4)
  variables = model.init(jax.random.key(0), texts, GRAPH, images, *pairs)
  still = model.apply(variables, texts, GRAPH, images, *pairs)
  np.testing.assert_array_equal(still, model.apply(variables, texts, GRAPH, images, *pairs))
  once, again = (
    model.apply(
      variables, texts, GRAPH, images, *pairs, train=True, rngs={"dropout": jax.random.key(k)}
    )
    for k in (1, 2)
  )
  assert not np.allclose(once, again) and not np.allclose(once, still)


def test_units_are_dropped_for_a_text_whatever_the_image(drawn):
  texts, images = drawn
  model = PairScore(text=GraphEncoder(dim=1, activation="none"), dropout=0.0, unit_dropout=0.5)
  pairs = [x.ravel() for x in jnp.meshgrid(jnp.arange(6), jnp.arange(4), indexing="ij")]
  variables = {
    "params": moved(model.init(jax.random.key(0), texts, GRAPH, images, *pairs)["params"])
  }
  constant = variables["params"]["head"]["bias"]
  still = model.apply(variables, texts, GRAPH, images, *pairs).reshape(6, 4) - constant
  shares = []
  for seed in range(8):
    scores = model.apply(
      variables, texts, GRAPH, images, *pairs, train=True, rngs={"dropout": jax.random.key(seed)}
    )
    share = (scores.reshape(6, 4) - constant) / still
    np.testing.assert_allclose(share, np.broadcast_to(share[:, :1], share.shape), atol=1e-4)
    shares.append(np.round(share[:, 0]))
  assert set(np.ravel(shares)) == {0, 2}


def test_image_without_rows_and_an_unknown_normalization_are_refused(drawn):
  texts, _ = drawn
  with pytest.raises(ValueError, match="expected \\(images, features\\)"):
    PairScore(text=GraphEncoder(dim=8)).init(
      jax.random.key(0), texts, GRAPH, jnp.zeros(3), jnp.arange(1), jnp.arange(1)
    )
  with pytest.raises(ValueError, match="normalize is 'rows'; expected one of none, text, both"):
    PairScore(text=GraphEncoder(dim=8), normalize="rows").init(
      jax.random.key(0), texts, GRAPH, jnp.zeros((1, 3)), jnp.arange(1), jnp.arange(1)
    )
