"""Retrieval: a dual encoder of images and texts, trained in one stage and scored by recall."""

import dataclasses
import functools
import pathlib
import time

import jax

from xmr import checkpoint, encode, mining, parallel, train
from xmr.config import base_config, in_steps, validate
from xmr.errors import UserError
from xmr.eval import protocol
from xmr.eval import results as results_lib
from xmr.experiment import prepare
from xmr.inspect import plots
from xmr.inspect.runs import Run
from xmr.run_folder import begun, held, imported, keep_scored
from xmr.storage.files import write_arrays
from xmr.training import averaging

__all__ = ["Run", "base_config", "score", "stage", "train_and_evaluate", "validate"]


def train_and_evaluate(config, workdir, *, eval_only, stop):
  """Trains (or only scores) a run, prints its results and draws retrieved examples; see
  train.train_and_evaluate.
  """
  began = time.perf_counter()
  if eval_only and not begun(workdir):
    if (pathlib.Path(workdir) / "run.json").exists():
      raise UserError(
        f"--eval_only: {workdir} is the export of a run, which xmr.inspect.load reads; expected "
        "the run itself"
      )
    raise UserError(f"--eval_only: {workdir} has no checkpoints; train first, without it")
  if not eval_only and imported(workdir):
    raise UserError(
      f"{workdir} was imported and has no optimiser to go on with; train on from it with "
      f"--config.init={workdir}"
    )
  experiment = prepare(config, workdir, eval_only=eval_only)
  # The data set the fields that the recipe leaves open.
  config = experiment.config
  if not eval_only:
    encode.check_step(experiment)
    results_lib.check(config, experiment.splits[config.evaluate.split])
    record = getattr(experiment.splits, "record", None)
    kept = {"vocabulary": experiment.vocabulary, "record": record, "inputs": experiment.inputs}
    with stop, held(config, workdir, **kept):
      if not train.fit(stage(experiment), stop):
        return None
  results, image, text = score(experiment, began=began)
  if jax.process_index() == 0:
    if eval_only and experiment.inputs:
      # Runs of earlier versions do not have them.
      write_arrays(experiment.workdir / "inputs.npz", experiment.inputs)
    if eval_only:
      keep_scored(config, workdir)
    show(experiment, results, image, text)
  return results


def stage(experiment):
  """Returns the Stage of a run's experiment: warm-up, then the loss."""
  e, config = experiment, experiment.config
  miner, pool, bank = mining.make(e)

  def phase(name, until, loss):
    step = train.compiled(
      options=parallel.compiler_options(e.mesh),
      transform=e.transform,
      model=e.model,
      loss=loss,
      miner=miner,
      match=config.match,
      seed=config.seed,
      chunks=config.batch_chunks,
      ema=config.evaluate.ema,
      split_over=e.mesh if config.shard_params else None,
    )
    return train.Phase(name, until, step)

  warmup = min(e.warmup_steps, e.total_steps)
  return train.Stage(
    name="retrieval",
    workdir=e.workdir,
    config=config,
    initial=lambda: train.create_train_state(
      e.variables,
      e.transform,
      mesh=e.mesh,
      bank=bank,
      averaged=config.evaluate.ema > 0,
      split=config.shard_params,
    ),
    phases=(
      phase(config.warmup.loss, warmup, e.warmup_loss),
      phase(config.loss.name, e.total_steps, e.loss),
    ),
    batches=e.train_batches,
    ids="text_id",
    place=functools.partial(parallel.shard, e.mesh),
    pool=pool,
    validate=functools.partial(validation, e),
    every=max(1, in_steps(config.evaluate, e.steps_per_epoch, name="config.evaluate.")),
    shown="rsum",
    record=e.run_record,
    rates=e.rates,
    steps_per_epoch=e.steps_per_epoch,
  )


def embeddings(experiment, variables, split):
  """Returns (image [N, D], text [T, D]) float32 of a split."""
  e = experiment
  encoded = functools.partial(
    encode.encode_split,
    e.model,
    variables,
    split,
    config=e.config,
    mesh=e.mesh,
    vocabulary=e.vocabulary,
  )
  return encoded(side="image"), encoded(side="text")


def validation(experiment, state):
  """Returns the Validation of a state: recall on the validation split, selected by rsum."""
  config, split = experiment.config, experiment.splits["val"]
  variables = state.variables
  if config.shard_params:
    variables = parallel.whole(experiment.mesh, variables)
  image, text = embeddings(experiment, variables, split)
  metrics = protocol.score(
    encode.over_devices(image, experiment.mesh), text, split.image_of_text, kind=config.similarity
  )

  def picture():
    return plots.pixels(
      plots.retrieved(image, text, split, kind=config.similarity, folder=config.data.dir)
    )

  return train.Validation(
    metrics["rsum"], metrics, results_lib.line(metrics), picture if config.picture else None
  )


def score(experiment, *, began=None):
  """Scores the checkpoint that config.evaluate.select names on config.evaluate.split.

  Writes results.json, and the scores of each query into queries.npz.

  Args:
    experiment: Experiment.  began: time.perf_counter() when the command began, or None.
  Returns:
    (results, image [N, D], text [T, D]): as in results.json, and the embeddings that were scored.
  """
  e, config = experiment, experiment.config
  results_lib.check(config, e.splits[config.evaluate.split])
  step, variables, _ = checkpoint.load(e.workdir, config.evaluate.select)
  split = e.splits[config.evaluate.split]
  image, text = embeddings(e, parallel.replicate(e.mesh, variables), split)
  more = {"wise": between(e, variables)} if config.evaluate.wise else {}
  results = results_lib.report(
    encode.over_devices(image, e.mesh),
    text,
    split,
    config=config,
    step=step,
    workdir=None if jax.process_index() else e.workdir,
    seconds=None if began is None else time.perf_counter() - began,
    **more,
  )
  return results, image, text


def between(experiment, variables):
  """Scores weights between those of config.init and the run's, see averaging.between.

  Args:
    experiment: Experiment.  variables: of the run.
  Returns:
    {"start": config.init, "share": [n] of the run's weights, "val": {"i2t/r1": [n], ... "rsum":
    [n]}, and the same of the split that is scored}.
  """
  e, config = experiment, experiment.config
  model, start, end = averaging.ends(e.model, variables, config)
  plain, shares = dataclasses.replace(e, model=model), [float(a) for a in config.evaluate.wise]
  found = {}
  for share in shares:
    mixed = parallel.replicate(e.mesh, averaging.between(start, end, share))
    for name in dict.fromkeys(("val", config.evaluate.split)):
      split = e.splits[name]
      image, text = embeddings(plain, mixed, split)
      scores = protocol.score(
        encode.over_devices(image, e.mesh), text, split.image_of_text, kind=config.similarity
      )
      for metric, value in scores.items():
        found.setdefault(name, {}).setdefault(metric, []).append(float(value))
  return {"start": config.init, "share": shares, **found}


def show(experiment, results, image, text):
  """Prints the table of results, draws retrieved.png, and prints where the files are."""
  config, workdir = experiment.config, experiment.workdir
  print(results_lib.shown(results))
  made = ["results.json"]
  if config.picture:
    split = experiment.splits[config.evaluate.split]
    figure = plots.retrieved(image, text, split, kind=config.similarity, folder=config.data.dir)
    figure.savefig(workdir / "retrieved.png")
    made.append("retrieved.png")
  print("wrote " + ", ".join(str(workdir / name) for name in made))
  print(f"parameters: {workdir / 'checkpoints' / str(results['step'])}")
  if (workdir / "tensorboard").is_dir():
    print(f"curves: tensorboard --logdir {workdir}/tensorboard")
  print(f"look inside: python -m xmr.inspect.report --workdir={workdir}")
