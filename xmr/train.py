"""Training: a pure step, the loop over steps, and the entry point; a task's Stage is trained."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import struct

from xmr import checkpoint, parallel, tasks
from xmr.errors import UserError
from xmr.fields import Config
from xmr.preemption import Stop
from xmr.tracking.journal import Journal
from xmr.tracking.profiler import Profiler
from xmr.tracking.progress import compiling
from xmr.tracking.writer import Writer
from xmr.training.chunks import encoded


class TrainState(struct.PyTreeNode):
  """All that training needs to continue; every random number depends on the seed and the step."""

  step: jax.Array  # [] int32, steps done
  params: Any
  batch_stats: Any  # {} without BatchNorm
  opt_state: Any
  bank: Any = None  # embeddings of the training set, where mining.scope is bank
  average: Any = None  # of the parameters, where config.evaluate.ema is set

  @property
  def variables(self):
    """The variables of the model."""
    return {
      "params": self.params,
      **({"batch_stats": self.batch_stats} if self.batch_stats else {}),
    }

  @property
  def scored(self):
    """The state that is scored: with the average of its parameters where there is one."""
    return self if self.average is None else self.replace(params=self.average)


def embed_and_compare(
  params, state, batch, pool, *, model, loss, miner=None, match="image_id", seed=0, chunks=1
):
  """The objective of retrieval: encode, mine, loss.

  Args:
    params: of the model; differentiated.
    state: TrainState.  batch: dict of global arrays (design: batch), B rows.
    pool: rows that the miner chooses from, or None.
    model: DualEncoder.
    loss: Bound of xmr.losses; what it learns is in params["loss"].
    miner: function of mining.make(), for losses that take negatives.
    match: "image_id": captions of one image are never its negatives; "pair": only the pair itself
      is a match (released).
    seed: int, of dropout and random mining.
    chunks: int, parts in which the batch is encoded, see chunks.encoded.
  Returns:
    (loss [], (terms, changes of the state besides the parameters)).
  """
  dropout, mined = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
  same = owner = None
  if match == "image_id":
    owner = batch["image_id"]
    same = owner[:, None] == owner[None, :]
  variables = {**state.variables, "params": params}
  image, text, batch_stats = encoded(
    model, variables, batch, chunks=chunks, key=dropout, tokens=loss.tokens
  )
  tensors = {"image": image, "text": text, "match": same, "image_id": owner}
  bank = state.bank
  if miner is not None:
    negatives, bank = miner(variables, batch, tensors, pool, bank, step=state.step, key=mined)
    tensors |= negatives
  value, terms = loss.of(tensors, params.get("loss"))
  return value, (terms, {"batch_stats": batch_stats, "bank": bank})


def train_step(
  state,
  batch,
  pool,
  *,
  transform,
  objective=embed_and_compare,
  ema=0.0,
  split_over=None,
  **settings,
):
  """One step of any stage: objective, gradient, update.

  Args:
    state: TrainState.
    batch: dict of arrays, as the objective takes it.
    pool: what the objective reads besides the batch, or None.
    transform: optax.GradientTransformation.
    objective: function (params, state, batch, pool, **settings) -> (loss, (terms, changes of the
      state)).
    ema: decay of state.average, where there is one: ema average + (1 - ema) parameters.
    split_over: the mesh over which parameters, optimiser and average are split; None: each device
      has them whole.
    settings: of the objective: for retrieval `model`, `loss`, `miner`, `match`, `seed`, `chunks`.
  Returns:
    (TrainState, terms): terms a dict of [] float32: loss, its named terms, norms of gradient,
    parameters and update.
  """

  def value(params):
    # Whole where they are used; the gradient and all that follows from it is split again.
    params = params if split_over is None else parallel.gathered(split_over, params)
    return objective(params, state, batch, pool, **settings)

  (loss, (terms, changes)), gradient = jax.value_and_grad(value, has_aux=True)(state.params)
  updates, opt_state = transform.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  if state.average is not None:
    average = jax.tree.map(lambda old, new: ema * old + (1 - ema) * new, state.average, params)
    changes = {**changes, "average": average}
  if split_over is not None:
    kept = parallel.kept_split(split_over, (params, opt_state, changes.get("average")))
    params, opt_state, average = kept
    changes = changes if average is None else {**changes, "average": average}
  terms = {
    "loss": loss,
    **terms,
    "gradient_norm": optax.tree.norm(gradient),
    "parameter_norm": optax.tree.norm(params),
    "update_norm": optax.tree.norm(updates),
  }
  return state.replace(step=state.step + 1, params=params, opt_state=opt_state, **changes), terms


def compiled(*, options=None, **settings):
  """Returns the jitted train_step with its settings bound; it donates the state given to it.

  Args:
    options: of the compiler, as {name: value}.  settings: as `train_step`.
  """
  return jax.jit(
    functools.partial(train_step, **settings), donate_argnums=0, compiler_options=options
  )


def create_train_state(variables, transform, *, mesh, bank=None, averaged=False, split=False):
  """Returns the state of step 0 on all devices of the mesh, from host variables; `averaged` adds
  the average of its parameters, `split` splits both and the optimiser over the devices.
  """
  place = parallel.split_over if split else parallel.replicate
  others = {key: x for key, x in variables.items() if key != "params"}
  variables = parallel.replicate(mesh, others) | {"params": place(mesh, variables["params"])}
  opt_state = jax.jit(
    transform.init, out_shardings=optimizer_shardings(transform, variables["params"], mesh, split)
  )(variables["params"])
  step = parallel.replicate(mesh, np.zeros((), np.int32))
  # A copy: a step donates its state, which may not hold a buffer twice.
  average = jax.tree.map(jax.numpy.copy, variables["params"]) if averaged else None
  return TrainState(
    step, variables["params"], variables.get("batch_stats", {}), opt_state, bank, average
  )


def optimizer_shardings(transform, params, mesh, split):
  """Returns the shardings of the optimiser's state: as those of parameters of the same shapes."""
  return jax.tree.map(
    lambda x: parallel.split(mesh, x.shape) if split else parallel.replicated(mesh),
    jax.eval_shape(transform.init, params),
  )


@dataclasses.dataclass(frozen=True)
class Validation:
  """The result of a validation."""

  score: float  # the higher, the better; selects the best checkpoint
  metrics: dict[str, float]  # logged as val/NAME
  line: str  # the same as text for users
  picture: Callable[[], np.ndarray] | None = None  # draws [H, W, 3] uint8, for TensorBoard


@dataclasses.dataclass(frozen=True)
class Phase:
  """The steps of a stage that share a loss."""

  name: str  # of the loss
  until: int  # its last step
  step: Callable  # train_step with its settings bound, jitted


@dataclasses.dataclass(frozen=True)
class Stage:
  """One training: what is learned, from which batches, and how it is validated."""

  name: str  # shown to users: "retrieval", "siamese"
  workdir: pathlib.Path  # its checkpoints and curves
  config: Config
  initial: Callable[[], TrainState]
  phases: tuple[Phase, ...]  # in order; the last one ends the stage
  batches: Callable[[int], Iterator[Mapping[str, np.ndarray]]]  # of the host, from a step on
  ids: str  # field of a batch that names its rows, for errors
  place: Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]  # puts a batch on the devices
  pool: Any  # on the devices; what steps read besides the batch
  validate: Callable[[TrainState], Validation]
  every: int  # steps between validations
  shown: str  # name of the score on the progress line
  record: Callable[[dict | None], dict]  # what a checkpoint says of its run; takes the best so far
  rates: optax.Schedule
  steps_per_epoch: int

  @property
  def steps(self):
    """The last step."""
    return self.phases[-1].until

  def phase(self, step):
    """Returns the phase that a step (from 1) belongs to."""
    return next(phase for phase in self.phases if step <= phase.until)


def train_and_evaluate(config, workdir, *, eval_only=False, stop=None):
  """Trains or resumes a run and scores it; prints and writes its results.

  Order of starting values: 1. the newest checkpoint of this run that restores; 2. the best one of
  the run in config.init; 3. pretrained weights of the image backbone; 4. from scratch.

  Args:
    config: of a file in configs/; config.task names what is trained.
    workdir: folder of the run.
    eval_only: True scores the existing checkpoint.
    stop: Stop, which tells afterwards why the training ended early.
  Returns:
    The results, as in results.json; None where the run was stopped before its end.
  Raises:
    UserError: anything wrong with config, data or run folder; a loss that is not finite.
  """
  if config.task not in tasks.TASKS:
    raise UserError(f"config.task is {config.task!r}; expected one of {', '.join(tasks.TASKS)}")
  stop = Stop(every=config.log.steps) if stop is None else stop
  task = tasks.module(config.task)
  return task.train_and_evaluate(config, workdir, eval_only=eval_only, stop=stop)


def fit(stage, stop):
  """Runs a stage from its newest checkpoint to its last step.

  Args:
    stage: Stage.
    stop: Stop, already entered, so that signals only set a flag.
  Returns:
    True at the last step; False where a signal stopped the run, with a checkpoint.
  """
  config = stage.config
  checkpoints = checkpoint.Checkpoints(stage.workdir)
  state, best = restore(stage, checkpoints)
  start = int(state.step)
  if start < stage.steps and jax.process_index() == 0:
    # Old results, of fewer steps, would look like those of the resumed run.
    (stage.workdir / "results.json").unlink(missing_ok=True)
  writer = Writer(
    stage.workdir,
    step=start,
    total=stage.steps,
    tensorboard=config.log.tensorboard,
    progress=config.log.progress,
    active=jax.process_index() == 0,
  )
  if start:
    writer.say(f"{stage.name}: from step {start} of {stage.steps}")
  else:
    writer.hparams(stage.record(None)["config"])
  journal = Journal(
    writer,
    batch_size=config.batch_size,
    steps_per_epoch=stage.steps_per_epoch,
    rates=stage.rates,
    total=stage.steps,
  )
  if best["score"] is not None:
    journal.scores = {"best": best["score"]}
  profiler = Profiler(config.profile, stage.workdir, start=start)
  batches, phase = stage.batches(start), None
  try:
    for step in range(start + 1, stage.steps + 1):
      begun = time.perf_counter()
      batch = next(batches)
      waited = time.perf_counter() - begun
      before, phase = phase, stage.phase(step)
      with entered(stage, step, before, writer, journal):
        state, terms = phase.step(state, stage.place(batch), stage.pool)
      journal.record(step, batch[stage.ids], terms, waited=waited)
      profiler.step(step, state)
      last = step == stage.steps
      stopping = not last and stop.wanted(step)
      validating = last or step % stage.every == 0
      saving = validating or stopping or divides(config.checkpoint.steps, step)
      if saving or step % config.log.steps == 0:
        journal.flush()
      score = None
      if validating:
        score, best = validated(stage, state, best, writer, journal)
      if saving:
        begun = time.perf_counter()
        checkpoints.save(
          step, params=state.scored.params, state=rest(state), score=score, run=stage.record(best)
        )
        writer.scalars(step, {"seconds/checkpoint": time.perf_counter() - begun})
        journal.restart()
      if stopping:
        writer.say(
          f"{stop.reason}: saved step {step} of {stage.steps}; the same command goes on from there"
        )
        return False
    return True
  finally:
    profiler.close()
    writer.close()
    checkpoints.close()


@contextlib.contextmanager
def entered(stage, step, before, writer, journal):
  """Context of a step: at the start of a phase, announces it and the compilation of its program."""
  phase = stage.phase(step)
  if phase is before:
    yield
    return
  if before is not None:
    writer.say(f"step {step}: {before.name} was the warm-up; {phase.name} from here on")
  device, flat = jax.devices()[0], stage.record(None)["config"]
  fields = {
    name: value
    for name, value in flat.items()
    if name.startswith(("model.", "loss", "mining.", "batch_size"))
  }
  key = [stage.name, phase.name, jax.__version__, device.platform, device.device_kind, fields]
  where = stage.config.data.cache_dir
  with compiling(writer, f"the step with {phase.name}", key=key, cache_dir=where):
    yield
  journal.restart()


def divides(every, step):
  """Returns whether `every` divides a step; False if `every` is 0."""
  return bool(every) and step % every == 0


def rest(state):
  """What a checkpoint holds of a state besides the scored parameters."""
  result = {
    "step": state.step,
    "batch_stats": state.batch_stats,
    "opt_state": state.opt_state,
    "bank": state.bank,
  }
  return result if state.average is None else result | {"params": state.params}


def restore(stage, checkpoints):
  """Returns the newest saved state of a stage and its best score so far, or the initial state and
  None.
  """
  state = stage.initial()
  restored = checkpoints.latest(state.params, rest(state))
  if restored is None:
    return state, {"score": None, "step": None}
  _, scored, others, run = restored
  if state.average is None:
    return TrainState(params=scored, **others), run["best"]
  return TrainState(average=scored, **others), run["best"]


def validated(stage, state, best, writer, journal):
  """Scores a state, writes the result, and returns (score that selects, best so far)."""
  begun, step = time.perf_counter(), int(state.step)
  found = stage.validate(state.scored)
  if best["score"] is None or found.score > best["score"]:
    best = {"score": found.score, "step": step}
  values = {f"val/{name}": value for name, value in found.metrics.items()}
  writer.scalars(step, {**values, "seconds/evaluation": time.perf_counter() - begun})
  if writer.board and found.picture:
    writer.image(step, "val/retrieved", found.picture())
  mark = " (best)" if best["step"] == step else ""
  writer.say(
    f"validation, epoch {step / stage.steps_per_epoch:.2f}, step {step}: {found.line}{mark}"
  )
  journal.scores = {stage.shown: found.score, "best": best["score"]}
  return found.score, best
