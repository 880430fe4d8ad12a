"""What both stages of FG-CMIR share: a network scores pairs, a loss compares scores and labels."""

import itertools
import pathlib

import jax
import jax.numpy as jnp

from xmr import config as config_lib
from xmr import train
from xmr.run_folder import check_data, check_length
from xmr.training import optim


def score_and_compare(params, state, batch, arrays, *, scores, loss):
  """The objective of either stage: scores of pairs, and a loss of scores and labels.

  Args:
    params: of the network; differentiated.  state: TrainState.
    batch: of Pairs.batch: text [U], item [V], text_of_pair, item_of_pair [M] int32, positive [M]
      bool.
    arrays: dict of the arrays that the batch indexes: signal [T, N], and in stage 2 image [T, F]
      and similarity [T, T]; and key, the random key of dropout.
    scores: function (params, arrays, batch, key) -> [M] float32.
    loss: function (scores, batch, arrays) -> (loss, terms).
  Returns:
    (loss [], (terms, {})).
  """
  key = jax.random.fold_in(arrays["key"], state.step)
  value, terms = loss(scores(params, arrays, batch, key), batch, arrays)
  return value, (terms, {})


def stage_of(
  config,
  workdir,
  *,
  name,
  pairs,
  params,
  scores,
  loss_name,
  loss,
  arrays,
  validate,
  steps,
  every,
  programs,
  digests,
):
  """Returns the train.Stage of one of the two stages.

  Args:
    config: of the stage.  workdir: its folder.  name: "siamese" or "pairs".
    pairs: Pairs.  params: starting values.  loss_name: shown to the user.
    scores, loss, arrays: as `score_and_compare`; whatever differs between seeds is in the arrays,
      so that seeds share a compiled program.
    validate: function params -> {name of a metric: value}; the first metric selects.
    steps: the last step.  every: steps between validations.
    programs: dict of jitted steps that the runs of a table share; None is for this run alone.
    digests: of the data.
  Raises:
    UserError: the folder was trained for more steps, or on other data.
  """
  check_length(steps, workdir)
  check_data(digests, workdir, where=config.data.dir or config.data.name)
  transform, rates = optim.make(
    config.optimizer, params, steps_per_epoch=pairs.steps_per_epoch, total_steps=steps
  )

  def initial():
    return train.TrainState(jnp.zeros((), jnp.int32), params, {}, transform.init(params))

  def validation(state):
    metrics = validate(state.params)
    line = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items())
    return train.Validation(next(iter(metrics.values())), metrics, line)

  fields = {key: repr(value) for key, value in config_lib.flat(config).items() if key != "seed"}
  step = ({} if programs is None else programs).setdefault(
    (name, *sorted(fields.items())),
    train.compiled(transform=transform, objective=score_and_compare, scores=scores, loss=loss),
  )
  return train.Stage(
    name=name,
    workdir=pathlib.Path(workdir),
    config=config,
    initial=initial,
    phases=(train.Phase(loss_name, steps, step),),
    batches=lambda start: map(pairs.batch, itertools.count(start)),
    ids="text",
    place=dict,
    pool=arrays,
    validate=validation,
    every=every,
    shown="auc" if name == "siamese" else "map",
    record=lambda best: {
      "config": config_lib.flat(config),
      "vocabulary": None,
      "best": best,
      "data": digests,
    },
    rates=rates,
    steps_per_epoch=pairs.steps_per_epoch,
  )
