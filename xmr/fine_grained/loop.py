"""One stage of FG-CMIR: pairs are scored, a loss compares the scores with the labels, the best
parameters are kept.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xmr import checkpoint, optim
from xmr import config as config_lib
from xmr.data.pairs import Pairs
from xmr.tracking.journal import Journal
from xmr.tracking.writer import Writer
from xmr.train import TrainState, rest


@dataclasses.dataclass(frozen=True)
class Stage:
  """One training: what is scored, by which loss, on which pairs, and what says how good it is."""

  name: str
  folder: pathlib.Path
  pairs: Pairs
  params: Any
  scores: Callable  # (params, arrays, batch, key) -> [M] scores of the pairs
  loss: Callable  # (scores, batch, arrays) -> (loss, terms)
  arrays: (
    dict  # on the device; whatever differs between seeds is here, so that they share a program
  )
  validate: Callable  # params -> {"score": ..., named figures}
  steps: int
  every: int  # steps between validations


def train_step(state, batch, arrays, *, scores, loss, transform):
  """One step of either stage: scores of pairs, loss, gradient, update.

  Args:
    state: TrainState.
    batch: of Pairs.batch: text [U], item [V], text_of_pair, item_of_pair [M] int32, positive [M]
      bool.
    arrays: dict of what rows refer to: signal [T, N], and in stage 2 image [T, F] and similarity
      [T, T]; and key, the random key of dropout.
    scores: function (params, arrays, batch, key) -> [M] float32.
    loss: function (scores, batch, arrays) -> (loss, terms).
    transform: optax.GradientTransformation.
  Returns:
    (TrainState, terms): terms a dict of [] float32.
  """
  key = jax.random.fold_in(arrays["key"], state.step)

  def objective(params):
    return loss(scores(params, arrays, batch, key), batch, arrays)

  (value, terms), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
  updates, opt_state = transform.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  terms = {
    "loss": value,
    **terms,
    "gradient_norm": optax.tree.norm(gradient),
    "parameter_norm": optax.tree.norm(params),
  }
  return TrainState(state.step + 1, params, {}, opt_state), terms


def program(stage, config, transform, programs):
  """Returns the compiled step of a stage: one for all runs that share `programs` and differ in the
  seed alone.

  Args:
    stage: Stage.  config: of the run.  transform: its optimiser.
    programs: dict that holds them, of a table; None: of this run alone.
  """
  step = functools.partial(train_step, scores=stage.scores, loss=stage.loss, transform=transform)
  fields = {key: repr(value) for key, value in config_lib.flat(config).items() if key != "seed"}
  programs = {} if programs is None else programs
  return programs.setdefault((stage.name, *sorted(fields.items())), jax.jit(step, donate_argnums=0))


def fit(stage, config, stop, *, programs=None):
  """Runs a stage to its last step, from its newest checkpoint; returns False where a signal stopped
  it.

  Args:
    stage: Stage.  config: of the run.  stop: Stop.  programs: as in `program`.
  """
  transform, rates = optim.make(
    config.optimizer,
    stage.params,
    steps_per_epoch=stage.pairs.steps_per_epoch,
    total_steps=stage.steps,
  )
  checkpoints = checkpoint.Checkpoints(stage.folder)
  state = TrainState(jnp.zeros((), jnp.int32), stage.params, {}, transform.init(stage.params))
  restored, best = checkpoints.latest(state.params, rest(state)), {"score": None, "step": None}
  if restored:
    state, best = TrainState(params=restored[1], **restored[2]), restored[3]["best"]
  start = int(state.step)
  writer = Writer(
    stage.folder,
    step=start,
    total=stage.steps,
    tensorboard=config.log.tensorboard,
    progress=config.log.progress,
  )
  writer.say(f"{stage.name}: step {start} of {stage.steps}")
  journal = Journal(
    writer, batch_size=config.batch_size, steps_per_epoch=stage.pairs.steps_per_epoch, rates=rates
  )
  run_step = program(stage, config, transform, programs)
  try:
    for step in range(start + 1, stage.steps + 1):
      begun = time.perf_counter()
      batch = stage.pairs.batch(step - 1)
      state, terms = run_step(state, batch, stage.arrays)
      journal.record(step, batch["text"], terms, waited=time.perf_counter() - begun)
      stopping = step < stage.steps and stop.wanted(step)
      validating = step % stage.every == 0 or step == stage.steps
      if validating or stopping or step % config.log.steps == 0:
        journal.flush()
      score = None
      if validating:
        figures = stage.validate(state.params)
        score = figures.pop("score")
        if best["score"] is None or score > best["score"]:
          best = {"score": score, "step": step}
        writer.scalars(step, {f"val/{name}": value for name, value in figures.items()})
        journal.scores = {"val": score, "best": best["score"]}
      if validating or stopping:
        record = {"config": config_lib.flat(config), "vocabulary": None, "best": best}
        checkpoints.save(step, params=state.params, state=rest(state), score=score, run=record)
        journal.restart()
      if stopping:
        writer.say(
          f"{stop.reason}: saved {stage.name} step {step} of {stage.steps}; the same command "
          "goes on from there"
        )
        return False
    return True
  finally:
    writer.close()
    checkpoints.close()
