"""Training: one pure step, one loop, and the evaluation of what came out."""

import functools
import inspect
import time
from typing import Any

import flax
import jax
import numpy as np
import optax

from xmr import checkpoint, encode, mining, parallel, run_folder
from xmr.config import in_steps
from xmr.eval import configured, protocol
from xmr.experiment import prepare
from xmr.files import write_arrays
from xmr.inspect import plots
from xmr.preemption import Stop
from xmr.tracking.journal import Journal
from xmr.tracking.profiler import Profiler
from xmr.tracking.writer import Writer


@flax.struct.dataclass
class TrainState:
  """All that training needs to go on; every random number is a function of the seed and the
  step.
  """

  step: jax.Array  # [] int32, steps done
  params: Any
  batch_stats: Any  # {} without BatchNorm
  opt_state: Any
  bank: Any = None  # embeddings of the training set, where mining.scope is bank

  @property
  def variables(self):
    """The variables of the model."""
    return {
      "params": self.params,
      **({"batch_stats": self.batch_stats} if self.batch_stats else {}),
    }


def train_step(state, batch, pool, *, model, transform, loss, miner=None, match="image_id", seed=0):
  """One step: encode, mine, loss, gradient, update.

  Args:
    state: TrainState.
    batch: dict of global arrays (design: batch), B rows.
    pool: what the miner chooses from, or None.
    model: DualEncoder.
    transform: optax.GradientTransformation.
    loss: function of xmr.losses with its parameters bound.
    miner: function of mining.make(), for losses that take negatives.
    match: "image_id": captions of one image are never its negatives; "pair": only the pair itself
      is a match (released).
    seed: int, of dropout and random mining.
  Returns:
    (TrainState, terms): terms a dict of [] float32: loss, its named terms, norms of gradient,
    parameters and update.
  """
  key = jax.random.fold_in(jax.random.key(seed), state.step)
  dropout, mined = jax.random.split(key)
  same = owner = None
  if match == "image_id":
    owner = batch["image_id"]
    same = owner[:, None] == owner[None, :]

  def objective(params):
    variables = {**state.variables, "params": params}
    (image, text), updated = model.apply(
      variables, batch, train=True, rngs={"dropout": dropout}, mutable=["batch_stats"]
    )
    tensors = {"image": image, "text": text, "match": same, "image_id": owner}
    bank = state.bank
    if miner is not None:
      negatives, bank = miner(variables, batch, tensors, pool, bank, step=state.step, key=mined)
      tensors |= negatives
    value, terms = loss(
      **{name: tensors[name] for name in inspect.signature(loss).parameters if name in tensors}
    )
    return value, (terms, updated.get("batch_stats", {}), bank)

  (value, (terms, batch_stats, bank)), gradient = jax.value_and_grad(objective, has_aux=True)(
    state.params
  )
  updates, opt_state = transform.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  terms = {
    "loss": value,
    **terms,
    "gradient_norm": optax.tree.norm(gradient),
    "parameter_norm": optax.tree.norm(params),
    "update_norm": optax.tree.norm(updates),
  }
  return TrainState(state.step + 1, params, batch_stats, opt_state, bank), terms


def create_train_state(variables, transform, *, mesh, bank=None):
  """Returns the state of step 0 on all devices of the mesh, from host variables."""
  variables = parallel.replicate(mesh, variables)
  opt_state = jax.jit(transform.init, out_shardings=parallel.replicated(mesh))(variables["params"])
  step = parallel.replicate(mesh, np.zeros((), np.int32))
  return TrainState(step, variables["params"], variables.get("batch_stats", {}), opt_state, bank)


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


def train_and_evaluate(config, workdir):
  """Trains a run, or goes on with it, and scores it.

  Order of starting values: 1. the newest checkpoint of this run that restores; 2. the best one of
  the run in config.init; 3. pretrained weights of the image backbone; 4. from scratch.

  Args:
    config: validated config.
    workdir: folder of the run.
  Returns:
    The results, as in results.json; None where the run was stopped before its end.
  Raises:
    UserError: anything wrong with config, data or run folder; a loss that is not finite.
  """
  experiment = prepare(config, workdir)
  return score(experiment)[0] if train(experiment) else None


def train(experiment):
  """Trains up to the last step of the config; returns False where a signal stopped it, with a
  checkpoint.
  """
  e = experiment
  configured.check(e.config, e.splits[e.config.evaluate.split])
  with (
    Stop(every=e.config.log.steps) as stop,
    run_folder.held(
      e.config, e.workdir, vocabulary=e.vocabulary, record=getattr(e.splits, "record", None)
    ),
  ):
    return fit(e, stop)


def fit(experiment, stop):
  """Runs the loop to its last step; returns False where a signal stopped it."""
  e, config = experiment, experiment.config
  checkpoints = checkpoint.Checkpoints(e.workdir)
  miner, pool, bank = mining.make(e)
  state, best = restore(
    e, checkpoints, create_train_state(e.variables, e.transform, mesh=e.mesh, bank=bank)
  )
  start = int(state.step)
  writer = Writer(
    e.workdir,
    step=start,
    total=e.total_steps,
    tensorboard=config.log.tensorboard,
    progress=config.log.progress,
    active=jax.process_index() == 0,
  )
  writer.say(f"from step {start} of {e.total_steps}") if start else writer.hparams(e.flat_config)
  journal = Journal(
    writer, batch_size=config.batch_size, steps_per_epoch=e.steps_per_epoch, rates=e.rates
  )
  if best["score"] is not None:
    journal.scores = {"best": best["score"]}
  profiler = Profiler(config.profile, e.workdir, start=start)
  step_of = functools.partial(
    train_step,
    model=e.model,
    transform=e.transform,
    miner=miner,
    match=config.match,
    seed=config.seed,
  )
  run_step, run_warmup = (
    jax.jit(
      functools.partial(step_of, loss=loss),
      donate_argnums=0,
      compiler_options=parallel.compiler_options(e.mesh),
    )
    for loss in (e.loss, e.warmup_loss)
  )
  every = max(1, in_steps(config.evaluate, e.steps_per_epoch, name="config.evaluate."))
  batches = e.train_batches(start)
  try:
    for step in range(start + 1, e.total_steps + 1):
      begun = time.perf_counter()
      batch = next(batches)
      waited = time.perf_counter() - begun
      state, terms = (run_warmup if step <= e.warmup_steps else run_step)(
        state, parallel.shard(e.mesh, batch), pool
      )
      journal.record(step, batch["text_id"], terms, waited=waited)
      profiler.step(step, state)
      stopping = step < e.total_steps and stop.wanted(step)
      validating = step % every == 0 or step == e.total_steps
      saving = (
        validating or stopping or (config.checkpoint.steps and step % config.checkpoint.steps == 0)
      )
      if saving or step % config.log.steps == 0:
        journal.flush()
      score = None
      if validating:
        score, best = validate(e, state, best, writer, journal)
      if saving:
        begun = time.perf_counter()
        checkpoints.save(
          step, params=state.params, state=rest(state), score=score, run=e.run_record(best)
        )
        writer.scalars(step, {"seconds/checkpoint": time.perf_counter() - begun})
        journal.restart()
      if stopping:
        writer.say(
          f"{stop.reason}: saved step {step} of {e.total_steps}; the same command goes on from "
          "there"
        )
        return False
    return True
  finally:
    profiler.close()
    writer.close()
    checkpoints.close()


def rest(state):
  """What a checkpoint holds of a state beside the parameters."""
  return {
    "step": state.step,
    "batch_stats": state.batch_stats,
    "opt_state": state.opt_state,
    "bank": state.bank,
  }


def restore(experiment, checkpoints, state):
  """Returns the newest saved state and its best score so far, or the given one and none."""
  restored = checkpoints.latest(state.params, rest(state))
  if restored is None:
    return state, {"score": None, "step": None}
  _, params, others, run = restored
  return TrainState(params=params, **others), run["best"]


def validate(experiment, state, best, writer, journal):
  """Scores the validation split, writes it, and returns (score that selects, best so far)."""
  begun, step, split = time.perf_counter(), int(state.step), experiment.splits["val"]
  image, text = embeddings(experiment, state.variables, split)
  metrics = protocol.score(
    encode.over_devices(image, experiment.mesh),
    text,
    split.image_of_text,
    kind=experiment.config.similarity,
  )
  score = metrics["rsum"]
  if best["score"] is None or score > best["score"]:
    best = {"score": score, "step": step}
  values = {f"val/{name}": value for name, value in metrics.items()}
  writer.scalars(step, {**values, "seconds/evaluation": time.perf_counter() - begun})
  if writer.board and experiment.config.picture:
    figure = plots.retrieved(
      image, text, split, kind=experiment.config.similarity, folder=experiment.config.data.dir
    )
    writer.image(step, "val/retrieved", plots.pixels(figure))
  mark = " (best)" if best["step"] == step else ""
  writer.say(
    f"epoch {step / experiment.steps_per_epoch:.2f}, step {step}: {protocol.line(metrics)}{mark}"
  )
  journal.scores = {"rsum": score, "best": best["score"]}
  return score, best


def score(experiment):
  """Scores the checkpoint that config.evaluate.select names on config.evaluate.split.

  Writes results.json, and what each query scores into queries.npz.

  Returns:
    (results, image [N, D], text [T, D]): as in results.json, and the embeddings that were scored.
  """
  e, config = experiment, experiment.config
  step, variables, _ = checkpoint.load(e.workdir, config.evaluate.select)
  split = e.splits[config.evaluate.split]
  image, text = embeddings(e, parallel.replicate(e.mesh, variables), split)
  found, queries = configured.figures(config, split, image, text)
  workdir = e.workdir if jax.process_index() == 0 else None
  if workdir:
    write_arrays(workdir / "queries.npz", queries)
  results = protocol.report(
    encode.over_devices(image, e.mesh),
    text,
    split,
    config=config,
    step=step,
    workdir=workdir,
    extra=found,
  )
  return results, image, text
