import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmr.config import base_config
from xmr.errors import UserError
from xmr.training import optim

PARAMS = {
  "image_encoder": {
    "backbone": {"kernel": jnp.ones((2, 2))},
    "projection": {"kernel": jnp.ones((2, 2))},
  }
}


def make(settings, **options):
  section = base_config().optimizer
  section.update(settings)
  return optim.make(section, PARAMS, **{"steps_per_epoch": 10, "total_steps": 300, **options})


def update(settings, gradient, **options):
  transform, _ = make(settings, **options)
  updates, _ = transform.update(gradient, transform.init(PARAMS), PARAMS)
  return updates["image_encoder"]


def test_learning_rate_falls_tenfold_every_fifteen_epochs():
  _, rates = make({})
  np.testing.assert_allclose(
    [rates(s) for s in (0, 149, 150, 299)], [2e-4, 2e-4, 2e-5, 2e-5], rtol=1e-6
  )


def test_decay_once_falls_only_once():
  _, rates = make({"decay_once": True, "decay_epochs": 5.0})
  np.testing.assert_allclose([rates(s) for s in (49, 50, 299)], [2e-4, 2e-5, 2e-5], rtol=1e-6)


def test_warmup_rises_linearly():
  _, rates = make({"warmup_steps": 4, "schedule": "constant"})
  np.testing.assert_allclose(
    [rates(s) for s in range(5)], [5e-5, 1e-4, 1.5e-4, 2e-4, 2e-4], rtol=1e-6
  )


def test_clip_scales_the_whole_gradient_to_the_norm():
  gradient = jax.tree.map(lambda x: 10 * x, PARAMS)
  updates = update({"name": "sgd", "clip": 2.0, "learning_rate": 1.0}, gradient)
  np.testing.assert_allclose(
    np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(updates))), 2.0, rtol=1e-6
  )


def test_frozen_parameters_neither_move_nor_count_in_the_norm():
  gradient = jax.tree.map(lambda x: 10 * x, PARAMS)
  settings = {"name": "sgd", "clip": 2.0, "learning_rate": 1.0}
  updates = update(settings, gradient, frozen=("^image_encoder/backbone/",))
  assert not np.any(updates["backbone"]["kernel"])
  np.testing.assert_allclose(np.linalg.norm(updates["projection"]["kernel"]), 2.0, rtol=1e-6)


def test_a_multiplier_scales_the_update_of_the_paths_it_names():
  settings = {"name": "sgd", "clip": 0.0, "learning_rate": 1.0, "multipliers": (("backbone", 0.1),)}
  updates = update(settings, PARAMS)
  np.testing.assert_allclose(updates["backbone"]["kernel"], -0.1, rtol=1e-6)
  np.testing.assert_allclose(updates["projection"]["kernel"], -1.0, rtol=1e-6)


def test_l2_adds_its_gradient_before_the_clip():
  settings = {"name": "sgd", "clip": 0.0, "learning_rate": 1.0, "l2": 0.25}
  updates = update(settings, jax.tree.map(jnp.zeros_like, PARAMS))
  np.testing.assert_allclose(updates["projection"]["kernel"], -0.5, rtol=1e-6)


def test_a_multiplier_that_matches_nothing_lists_the_paths():
  with pytest.raises(
    UserError,
    match="no parameter path contains 'text_encoder'; paths: image_encoder/backbone/kernel",
  ):
    make({"multipliers": (("text_encoder", 0.1),)})
