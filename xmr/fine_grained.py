"""FG-CMIR in two stages: a siamese text network labels pairs by hardness, then pairs are scored with hard ones weighted.

The base system (graph of words, encoders, pairwise similarity loss) is that of the group's released code; the label
formula and the weighted loss are a RECONSTRUCTION from the paper's abstract: neither is public.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xmr import checkpoint, losses, optim
from xmr import config as config_lib
from xmr.data.pairs import SCHEMES, Pairs
from xmr.data.text_graph import SIGNALS
from xmr.errors import UserError
from xmr.eval.average_precision import mean_average_precision
from xmr.experiment import check_folder, claim
from xmr.fine_grained_data import SCALES, Problem, load
from xmr.journal import Journal
from xmr.models.graph import BIASES, STARTS, GraphEncoder
from xmr.models.siamese import PairScore, Siamese
from xmr.stopping import Stop
from xmr.train import TrainState, rest
from xmr.writers import Writer, write_json

BASE = "pairwise_similarity"
CHOICES = {
  "siamese.loss": ("cross_entropy", BASE), "pairs.scheme": SCHEMES, "pairs.image_scale": SCALES, "graph.signal": SIGNALS,
  "graph.bias": BIASES, "graph.start": STARTS,
}  # fmt: skip
POSITIVE = ("graph.min_count", "graph.neighbours", "graph.order", "graph.dim", "siamese.steps", "siamese.every")


@dataclasses.dataclass(frozen=True)
class Stage:
  """One training: what is scored, by which loss, on which pairs, and what says how good it is."""

  name: str
  folder: pathlib.Path
  pairs: Pairs
  params: Any
  scores: Callable  # (params, arrays, batch, key) -> [M] scores of the pairs
  loss: Callable  # (scores, batch, arrays) -> (loss, terms)
  arrays: dict  # on the device
  validate: Callable  # params -> {"score": ..., named figures}
  steps: int
  every: int  # steps between validations


def train_step(state, batch, arrays, *, scores, loss, transform, seed=0):
  """One step of either stage: scores of pairs, loss, gradient, update.

  Args:
    state: TrainState.
    batch: of Pairs.batch: text [U], item [V], text_of_pair, item_of_pair [M] int32, positive [M] bool.
    arrays: dict of what rows refer to: signal [T, N], and in stage 2 image [T, F] and similarity [T, T].
    scores: function (params, arrays, batch, key) -> [M] float32.
    loss: function (scores, batch, arrays) -> (loss, terms).
    transform: optax.GradientTransformation.  seed: int, of dropout.
  Returns:
    (TrainState, terms): terms a dict of [] float32.
  """
  key = jax.random.fold_in(jax.random.key(seed), state.step)

  def objective(params):
    return loss(scores(params, arrays, batch, key), batch, arrays)

  (value, terms), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
  updates, opt_state = transform.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  terms = {"loss": value, **terms, "gradient_norm": optax.tree.norm(gradient), "parameter_norm": optax.tree.norm(params)}
  return TrainState(state.step + 1, params, {}, opt_state), terms


def hardness(similarity, batch):
  """Fine-grained labels of a batch (reconstructed): 1 - g for positives, g for negatives.

  g = q(t, d(i)), the siamese similarity of the pair's text with the text that belongs to its image.

  Args:
    similarity: [T, T] float in [0, 1], q of training texts; image i belongs to text i.
    batch: of Pairs.batch.
  Returns:
    [M] float in [0, 1].
  """
  g = similarity[batch["text"][batch["text_of_pair"]], batch["item"][batch["item_of_pair"]]]
  return jnp.where(batch["positive"], 1 - g, g)


def cross_entropy(scores, batch, arrays):
  """Binary cross entropy of logits, the mean over positives and that over negatives in equal parts (yul_gcn's choice)."""
  positive = batch["positive"]
  each = jnp.where(positive, jax.nn.softplus(-scores), jax.nn.softplus(scores))
  parts = [jnp.sum(each * kind) / jnp.maximum(jnp.sum(kind), 1) for kind in (positive, ~positive)]
  return sum(parts) / 2, {"positive": parts[0], "negative": parts[1]}


def train_and_evaluate(config, workdir):
  """Runs both stages and scores the test split, or every row of config.table; goes on where an earlier start ended.

  Args:
    config: of configs/fgcmir_*.py.  workdir: folder of the run, or of the table.
  Returns:
    The results, as in results.json; None where the run was stopped before its end.
  Raises:
    UserError: anything wrong in the config or the data, before anything is compiled.
  """
  validate(config)
  with Stop() as stop:
    if config.table.seeds:
      from xmr.fine_grained_table import run_table

      return run_table(config, workdir, stop)
    results = run(config, workdir, stop)
  if results:
    figures = " · ".join(f"{name} {results['metrics'][name]:.3f}" for name in ("i2t/map", "t2i/map", "map"))
    matching = results["semantic_matching"]
    print(f"{figures} (semantic matching {matching['i2t/map']:.3f} {matching['t2i/map']:.3f} {matching['map']:.3f})")
    print(f"results: {pathlib.Path(workdir) / 'results.json'}")
  return results


def validate(config):
  """Raises UserError for a config that the two stages cannot run."""
  config_lib.validate(config)
  if jax.process_count() > 1:
    raise UserError(f"config.task=fine_grained runs in one process; found {jax.process_count()}")
  values = config_lib.flat(config)
  for key, choices in CHOICES.items():
    if values[key] not in choices:
      raise UserError(f"config.{key} is {values[key]!r}; expected one of {', '.join(choices)}")
  for key in POSITIVE:
    if not values[key] > 0:
      raise UserError(f"config.{key} is {values[key]}; expected more than 0")
  bound, pair = loss_of(config), jnp.zeros(2)
  # The loss checks its own parameters when it is traced.
  jax.eval_shape(bound, pair, pair > 0, *([] if config.loss.name == BASE else [pair]))
  for key in ("siamese.dropout", "pairs.dropout"):
    if not 0 <= values[key] < 1:
      raise UserError(f"config.{key} is {values[key]}; expected from 0 to below 1")


def loss_of(config):
  """Returns the loss of stage 2 with its parameters bound: pairwise_similarity or fine_grained_similarity."""
  names = (BASE, "fine_grained_similarity")
  if config.loss.name not in names:
    raise UserError(f"config.loss.name is {config.loss.name!r}; expected {' or '.join(names)} with config.task=fine_grained")
  return losses.get(config.loss.name, **{key: value for key, value in config.loss.items() if key != "name"})


def run(config, workdir, stop, *, siamese_dir=None, problem=None, baselines=True):
  """One run of both stages; returns its results, or None where it was stopped.

  Args:
    config: validated.  workdir: of the run.  stop: Stop.
    siamese_dir: folder of stage 1, shared by runs of one seed; None: workdir/siamese.
    problem: Problem, where several runs share one.  baselines: measure semantic matching too.
  """
  workdir = pathlib.Path(workdir)
  check_folder(config, workdir)
  claim(config, workdir, None)
  problem = problem or load(config)
  similarity = None
  if config.loss.name != BASE:
    similarity = label_similarity(config, problem, pathlib.Path(siamese_dir or workdir / "siamese"), stop)
    if similarity is None:
      return None
  stage, model = retrieval_stage(config, problem, workdir, similarity)
  if not fit(stage, config, stop):
    return None
  from xmr import fine_grained_report

  step, variables, _ = checkpoint.load(workdir, "best")
  embeddings = {name: embed(model, variables["params"], problem, name) for name in problem.signals}
  results = fine_grained_report.results(config, problem, embeddings, step=step, baselines=baselines)
  write_json(workdir / "results.json", results)
  fine_grained_report.draw(workdir, problem, embeddings, similarity)
  return results


def encoder(config):
  """Returns the GraphEncoder that config.graph and config.model.dim describe."""
  section = config.graph
  return GraphEncoder(
    dim=config.model.dim, order=section.order, layers=section.layers, bias=section.bias, start=section.start
  )


def label_similarity(config, problem, folder, stop):
  """Trains or resumes stage 1 and returns q of all pairs of training texts, [T, T] float32; None where stopped."""
  alone = config.copy_and_resolve_references()
  # Stage 1 does not depend on the loss and length of stage 2: variants of one seed share its folder.
  with alone.ignore_type():
    alone.loss.update({key: None for key in alone.loss if key != "name"} | {"name": BASE})
    alone.update({"steps": config.siamese.steps, "epochs": 0.0})
  check_folder(alone, folder)
  claim(alone, folder, None)
  model = Siamese(encoder=encoder(config), dropout=config.siamese.dropout)
  train, val = (jnp.asarray(problem.signals[name]) for name in ("train", "val"))
  example = (train[:2], problem.laplacian, jnp.arange(2), jnp.arange(2))
  params = jax.jit(model.init)(jax.random.fold_in(jax.random.key(config.seed), 1), *example)["params"]

  def scores(params, arrays, batch, key):
    # One encoding serves both sides: grid pairs a batch's texts with each other.
    shared = batch["text"].shape == batch["item"].shape and config.pairs.scheme == "grid"
    rows = batch["text"] if shared else jnp.concatenate([batch["text"], batch["item"]])
    second = batch["item_of_pair"] + (0 if shared else batch["text"].shape[0])
    return model.apply(
      {"params": params}, arrays["signal"][rows], arrays["laplacian"], batch["text_of_pair"], second, train=True,
      rngs={"dropout": key},
    )  # fmt: skip

  def all_pairs(params, first, second):
    encoded = [model.apply({"params": params}, x, problem.laplacian, method="encode") for x in (first, second)]
    return jax.nn.sigmoid(model.apply({"params": params}, *encoded, method="all_pairs"))

  all_pairs = jax.jit(all_pairs)
  same = problem.label["val"][:, None] == problem.label["val"][None, :]
  upper = np.triu_indices(len(same), 1)

  def validate(params):
    value = area_under_roc(np.asarray(all_pairs(params, val, val))[upper], same[upper])
    return {"score": value, "auc": value}

  pairwise = losses.get(BASE)
  loss = cross_entropy if config.siamese.loss == "cross_entropy" else lambda s, batch, _: pairwise(s, batch["positive"])
  stage = Stage(
    "siamese", folder, pairs_of(config, problem, own=False), params, scores, loss,
    {"signal": train, "laplacian": problem.laplacian}, validate, config.siamese.steps, config.siamese.every,
  )  # fmt: skip
  if not fit(stage, config, stop):
    return None
  _, variables, _ = checkpoint.load(folder, "best")
  return np.asarray(all_pairs(variables["params"], train, train))


def retrieval_stage(config, problem, workdir, similarity):
  """Returns (Stage, PairScore) of stage 2; similarity is None for the base loss."""
  model = PairScore(text=encoder(config), dropout=config.pairs.dropout)
  arrays = {
    "signal": jnp.asarray(problem.signals["train"]), "image": jnp.asarray(problem.images["train"]),
    "laplacian": problem.laplacian,
  }  # fmt: skip
  if similarity is not None:
    arrays["similarity"] = jnp.asarray(similarity)
  example = (arrays["signal"][:2], problem.laplacian, arrays["image"][:2], jnp.arange(2), jnp.arange(2))
  params = jax.jit(model.init)(jax.random.fold_in(jax.random.key(config.seed), 2), *example)["params"]
  bound = loss_of(config)

  def scores(params, arrays, batch, key):
    return model.apply(
      {"params": params}, arrays["signal"][batch["text"]], arrays["laplacian"], arrays["image"][batch["item"]],
      batch["text_of_pair"], batch["item_of_pair"], train=True, rngs={"dropout": key},
    )  # fmt: skip

  def loss(scores, batch, arrays):
    if similarity is None:
      return bound(scores, batch["positive"])
    hard = hardness(arrays["similarity"], batch)
    value, terms = bound(scores, batch["positive"], hard)
    return value, {**terms, "hardness": jnp.mean(hard)}

  def validate(params):
    image, text = embed(model, params, problem, "val")
    figures = both_directions(image, text, problem.label["val"])
    return {"score": figures["map"], **figures}

  pairs = pairs_of(config, problem, own=True)
  steps = config_lib.in_steps(config, pairs.steps_per_epoch, name="config.")
  every = max(1, config_lib.in_steps(config.evaluate, pairs.steps_per_epoch, name="config.evaluate."))
  return Stage("pairs", workdir, pairs, params, scores, loss, arrays, validate, steps, every), model


def pairs_of(config, problem, *, own):
  """Returns the sampler over the training pairs."""
  return Pairs(
    problem.label["train"], batch_size=config.batch_size, scheme=config.pairs.scheme, seed=config.seed, own=own
  )


def fit(stage, config, stop):
  """Runs a stage to its last step, from its newest checkpoint; returns False where a signal stopped it."""
  transform, rates = optim.make(
    config.optimizer, stage.params, steps_per_epoch=stage.pairs.steps_per_epoch, total_steps=stage.steps
  )
  checkpoints = checkpoint.Checkpoints(stage.folder)
  state = TrainState(jnp.zeros((), jnp.int32), stage.params, {}, transform.init(stage.params))
  restored, best = checkpoints.latest(state.params, rest(state)), {"score": None, "step": None}
  if restored:
    state, best = TrainState(params=restored[1], **restored[2]), restored[3]["best"]
  start = int(state.step)
  writer = Writer(
    stage.folder, step=start, total=stage.steps, tensorboard=config.log.tensorboard, progress=config.log.progress
  )
  writer.say(f"{stage.name}: step {start} of {stage.steps}")
  journal = Journal(writer, batch_size=config.batch_size, steps_per_epoch=stage.pairs.steps_per_epoch, rates=rates)
  step_of = functools.partial(train_step, scores=stage.scores, loss=stage.loss, transform=transform, seed=config.seed)
  run_step = jax.jit(step_of, donate_argnums=0)
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
        journal.score = f"val {score:.3f} best {best['score']:.3f} "
      if validating or stopping:
        record = {"config": config_lib.flat(config), "vocabulary": None, "best": best}
        checkpoints.save(step, params=state.params, state=rest(state), score=score, run=record)
        journal.restart()
      if stopping:
        writer.say(f"{stop.reason}: saved {stage.name} step {step} of {stage.steps}; the same command goes on from there")
        return False
    return True
  finally:
    writer.close()
    checkpoints.close()


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, params, signal, laplacian, image):
  text = model.apply({"params": params}, signal, laplacian, method="encode_text")
  return model.apply({"params": params}, image, method="encode_image"), text


def embed(model, params, problem: Problem, split):
  """Returns (image [T, D], text [T, D]) float32 of a split; their dot product is the score without its constant."""
  encoded = _encode(model, params, problem.signals[split], problem.laplacian, problem.images[split])
  return tuple(np.asarray(x) for x in encoded)


def both_directions(image, text, label, *, gallery=None, at=None):
  """MAP of image queries, of text queries, and their mean, in [0, 1].

  Args:
    image, text: [Q, D] float queries.  label: [Q] int.
    gallery: (image [G, D], text [G, D], label [G]); None: the queries' own split.
    at: R of AP@R, or None for the whole gallery.
  Returns:
    {"i2t/map", "t2i/map", "map"}.
  """
  other_image, other_text, other_label = gallery or (image, text, label)
  i2t = mean_average_precision(image, other_text, label, other_label, at=at, kind="dot")
  t2i = mean_average_precision(text, other_image, label, other_label, at=at, kind="dot")
  return {"i2t/map": i2t, "t2i/map": t2i, "map": (i2t + t2i) / 2}


def area_under_roc(scores, positive):
  """Share of (positive, negative) pairs that scores order rightly, ties counting half; [P] float, [P] bool -> float."""
  from scipy import stats

  positive = np.asarray(positive, bool)
  wins = stats.rankdata(scores)[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
  return float(wins / (positive.sum() * (~positive).sum()))
