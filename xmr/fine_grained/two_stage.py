"""FG-CMIR in two stages: a siamese text network labels pairs by hardness, then the retrieval
network is trained with hard pairs weighted.

The base system (graph of words, encoders, pairwise similarity loss) is that of the group's released
code. The label formula and the weighted loss are a RECONSTRUCTION from the paper's abstract, since
neither is public.
"""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from xmr import checkpoint, losses, train
from xmr import config as config_lib
from xmr.data.pairs import Pairs
from xmr.errors import UserError
from xmr.fine_grained import report
from xmr.fine_grained.checks import loss_of
from xmr.fine_grained.config import BASE, labelled
from xmr.fine_grained.data import Problem, inputs_of, load
from xmr.fine_grained.scores import area_under_roc, both_directions
from xmr.fine_grained.stage import stage_of
from xmr.models.graph import GraphEncoder
from xmr.models.siamese import PairScore, Siamese
from xmr.run_folder import begun, check_folder, held
from xmr.storage.digests import sealed
from xmr.storage.files import write_arrays, write_json


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


def run(
  config,
  workdir,
  stop,
  *,
  siamese_dir=None,
  problem=None,
  programs=None,
  baselines=True,
  eval_only=False,
):
  """Runs both stages; returns the results, or None if it was stopped.

  Args:
    config: validated.  workdir: of the run.  stop: Stop.
    siamese_dir: folder of stage 1, which runs of one seed share; None is workdir/siamese.
    problem: Problem, if several runs share one.
    programs: dict of compiled steps, if several runs share them.
    baselines: measure semantic matching too, and draw.  eval_only: True trains nothing.
  """
  workdir = pathlib.Path(workdir)
  siamese_dir = pathlib.Path(siamese_dir or workdir / "siamese")
  check_folder(config, workdir)
  if eval_only:
    for folder in (workdir, siamese_dir) if labelled(config) else (workdir,):
      if not begun(folder):
        raise UserError(f"--eval_only: {folder} has no checkpoints; train first, without it")
  # Before the folder is written: bad data leaves nothing there.
  problem = problem or load(config)
  with held(config, workdir, eval_only=eval_only):
    return both_stages(
      config,
      workdir,
      stop,
      siamese_dir=siamese_dir,
      problem=problem,
      programs=programs,
      baselines=baselines,
      eval_only=eval_only,
    )


def both_stages(
  config, workdir, stop, *, siamese_dir, problem, programs, baselines, eval_only=False
):
  """As run, in a locked run folder."""
  write_arrays(workdir / "inputs.npz", inputs_of(config, problem))
  began = time.perf_counter()
  similarity = None
  if labelled(config):
    similarity = label_similarity(
      config, problem, siamese_dir, stop, programs=programs, eval_only=eval_only
    )
    if similarity is None:
      return None
  stage, model = retrieval_stage(config, problem, workdir, similarity, programs=programs)
  if not eval_only and not train.fit(stage, stop):
    return None
  step, variables, _ = checkpoint.load(workdir, "best")
  embeddings = {name: embed(model, variables["params"], problem, name) for name in problem.signals}
  seconds = time.perf_counter() - began
  results = report.results(
    config, problem, embeddings, step=step, baselines=baselines, seconds=seconds
  )
  write_json(workdir / "results.json", sealed(results))
  write_arrays(
    workdir / "queries.npz", report.per_query(*embeddings["test"], problem.label["test"])
  )
  if baselines:
    report.draw(workdir, problem, embeddings, similarity)
  return results


def encoder(config):
  """Returns the GraphEncoder that config.graph and config.model.dim describe."""
  section = config.graph
  return GraphEncoder(
    dim=config.model.dim,
    order=section.order,
    layers=section.layers,
    bias=section.bias,
    start=section.start,
    activation=config.pairs.activation,
    dropout=section.dropout,
  )


def pair_score(config):
  """Returns the PairScore that config.pairs, config.graph and config.model.dim describe."""
  section = config.pairs
  return PairScore(
    text=encoder(config),
    dropout=section.dropout,
    unit_dropout=section.unit_dropout,
    image_dropout=section.image_dropout,
    head_start=section.head_start,
    normalize=section.normalize,
  )


def label_similarity(config, problem, folder, stop, *, programs=None, eval_only=False):
  """Trains, resumes or only reads stage 1.

  Returns:
    [T, T], q of all pairs of training texts; None if it was stopped.
  """
  alone = config.copy_and_resolve_references()
  # Stage 1 does not depend on the loss and the steps of stage 2, so variants of one seed share its
  # folder.
  alone.loss = losses.table.section(BASE).lock()
  alone.steps, alone.epochs = config.siamese.steps, 0.0
  check_folder(alone, folder)
  model = Siamese(encoder=encoder(config), dropout=config.siamese.dropout)
  signal, val = (jnp.asarray(problem.signals[name]) for name in ("train", "val"))
  example = (signal[:2], problem.laplacian, jnp.arange(2), jnp.arange(2))
  params = jax.jit(model.init)(jax.random.fold_in(jax.random.key(config.seed), 1), *example)[
    "params"
  ]

  def scores(params, arrays, batch, key):
    # One encoding serves both sides of a grid, which pairs a batch's texts with each other.
    shared = batch["text"].shape == batch["item"].shape and config.pairs.scheme == "grid"
    rows = batch["text"] if shared else jnp.concatenate([batch["text"], batch["item"]])
    second = batch["item_of_pair"] + (0 if shared else batch["text"].shape[0])
    return model.apply(
      {"params": params},
      arrays["signal"][rows],
      arrays["laplacian"],
      batch["text_of_pair"],
      second,
      train=True,
      rngs={"dropout": key},
    )

  same = problem.label["val"][:, None] == problem.label["val"][None, :]
  upper = np.triu_indices(len(same), 1)

  def validate(params):
    value = area_under_roc(
      np.asarray(_similarity(model, params, val, problem.laplacian))[upper], same[upper]
    )
    return {"auc": value}

  bound = losses.get(config.siamese.loss)
  stage = stage_of(
    alone,
    folder,
    name="siamese",
    pairs=pairs_of(config, problem, own=False),
    params=params,
    scores=scores,
    loss_name=config.siamese.loss,
    loss=lambda s, batch, _: bound(s, batch["positive"]),
    arrays={"signal": signal, "laplacian": problem.laplacian, "key": jax.random.key(config.seed)},
    validate=validate,
    steps=config.siamese.steps,
    every=config.siamese.every,
    programs=programs,
    digests=problem.digests,
  )
  with held(alone, folder, eval_only=eval_only):
    if not eval_only and not train.fit(stage, stop):
      return None
  _, variables, _ = checkpoint.load(folder, "best")
  return np.asarray(_similarity(model, variables["params"], signal, problem.laplacian))


@functools.partial(jax.jit, static_argnums=0)
def _similarity(model, params, signal, laplacian):
  encoded = model.apply({"params": params}, signal, laplacian, method="encode")
  return jax.nn.sigmoid(model.apply({"params": params}, encoded, encoded, method="all_pairs"))


def retrieval_stage(config, problem, workdir, similarity, *, programs=None):
  """Returns (Stage, PairScore) of stage 2; similarity is None for the base loss."""
  model = pair_score(config)
  arrays = {
    "signal": jnp.asarray(problem.signals["train"]),
    "image": jnp.asarray(problem.images["train"]),
    "laplacian": problem.laplacian,
    "key": jax.random.key(config.seed),
  }
  if similarity is not None:
    arrays["similarity"] = jnp.asarray(similarity)
  example = (
    arrays["signal"][:2],
    problem.laplacian,
    arrays["image"][:2],
    jnp.arange(2),
    jnp.arange(2),
  )
  params = jax.jit(model.init)(jax.random.fold_in(jax.random.key(config.seed), 2), *example)[
    "params"
  ]
  bound = loss_of(config)

  def scores(params, arrays, batch, key):
    return model.apply(
      {"params": params},
      arrays["signal"][batch["text"]],
      arrays["laplacian"],
      arrays["image"][batch["item"]],
      batch["text_of_pair"],
      batch["item_of_pair"],
      train=True,
      rngs={"dropout": key},
    )

  def loss(scores, batch, arrays):
    if similarity is None:
      return bound(scores, batch["positive"])
    hard = hardness(arrays["similarity"], batch)
    value, terms = bound(scores, batch["positive"], hard)
    return value, {**terms, "hardness": jnp.mean(hard)}

  def validate(params):
    image, text = embed(model, params, problem, "val")
    found = both_directions(image, text, problem.label["val"])
    return {"map": found.pop("map"), **found}

  pairs = pairs_of(config, problem, own=True)
  steps = config_lib.in_steps(config, pairs.steps_per_epoch, name="config.")
  every = max(
    1, config_lib.in_steps(config.evaluate, pairs.steps_per_epoch, name="config.evaluate.")
  )
  stage = stage_of(
    config,
    workdir,
    name="pairs",
    pairs=pairs,
    params=params,
    scores=scores,
    loss_name=config.loss.name,
    loss=loss,
    arrays=arrays,
    validate=validate,
    steps=steps,
    every=every,
    programs=programs,
    digests=problem.digests,
  )
  return stage, model


def pairs_of(config, problem, *, own):
  """Returns the sampler over the training pairs."""
  return Pairs(
    problem.label["train"],
    batch_size=config.batch_size,
    scheme=config.pairs.scheme,
    seed=config.seed,
    own=own,
  )


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, params, signal, laplacian, image):
  text = model.apply({"params": params}, signal, laplacian, method="encode_text")
  return model.apply({"params": params}, image, method="encode_image"), text


def embed(model, params, problem: Problem, split):
  """Returns (image [T, D], text [T, D]) float32 of a split; their dot products are scores without
  the constant.
  """
  image, text = _encode(
    model, params, problem.signals[split], problem.laplacian, problem.images[split]
  )
  return np.asarray(image), np.asarray(text)
