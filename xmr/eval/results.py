"""The content of results.json, and its form as text."""

import datetime
import functools
import importlib.metadata
import pathlib
import platform
import shlex
import subprocess
import sys

import jax
import numpy as np

from xmr import __version__
from xmr.eval import metrics, table
from xmr.eval.positives import checked_image_of_text
from xmr.eval.truth import of_split
from xmr.storage import digests, files

TIE_RULE = "pessimistic: every non-positive that scores as the best positive stands before it"
NAMES = {"i2t": "image to text", "t2i": "text to image"}
NOISE = 2  # deviations of chance that a result must exceed to say anything


def record(
  found,
  *,
  dataset,
  split,
  protocol,
  n_images,
  n_texts,
  similarity,
  step=None,
  seed=None,
  seconds=None,
  ties=None,
  **more,
):
  """Returns the content of results.json of any task: the metrics, and how they were measured.

  Args:
    found: {name: float}.
    dataset, split, protocol: names; protocol says what is searched in what.
    n_images, n_texts: sizes.  similarity: kind.
    step: of the checkpoint.  seed: of the run.  seconds: since the command began.
    ties: {name: tied queries}.  **more: what a task adds.
  Returns:
    {"dataset", "split", "protocol", "n_images", "n_texts", "step", "similarity", "ties", "metrics",
    **more, "seed", "date" (UTC), "duration" (seconds), "command", "commit" (of this code; None
    outside a git checkout), "device" (its name), "versions"}.
  """
  return {
    "dataset": dataset,
    "split": split,
    "protocol": protocol,
    "n_images": int(n_images),
    "n_texts": int(n_texts),
    "step": None if step is None else int(step),
    "similarity": similarity,
    "ties": ties or {},
    "metrics": found,
    **more,
    "seed": seed,
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "duration": None if seconds is None else round(float(seconds), 3),
    "command": command(),
    "commit": commit(),
    "device": device(),
    "versions": versions(),
  }


def of_embeddings(image, text, truth, values, *, kind, **about):
  """Scores embeddings by all that the options ask for.

  Args:
    image: [N, D] float, possibly over several devices.  text: [T, D] float.  truth: GroundTruth.
    values: {option: value} of `table`, checked.  kind: of similarity.
    **about: dataset, split, step, seed, seconds, as of `record`.
  Returns:
    results: as `record`, with "captions_per_image": {"min", "mean", "max"}, "tie_rule", "precision"
      and "chance": what a random order gives, as `metrics.chance`; with folds too "folds/i2t/r1".
    queries: {name: array} of what each query scores, and "image_of_text": [T].
  Raises:
    UserError: as the metrics.
  """
  owner = checked_image_of_text(truth.image_of_text, n_texts=len(text), n_images=len(image))
  scores = table.evaluate(image, text, truth, values, kind=kind)
  queries = {
    name.removeprefix("queries/"): np.asarray(x)
    for name, x in scores.items()
    if name.startswith("queries/")
  }
  found = {name: x for name, x in scores.items() if not name.startswith("queries/")}
  ties = {
    name.removesuffix("/ties"): int(found.pop(name))
    for name in list(found)
    if name.endswith("/ties")
  }
  folds, captions = values["folds"], np.bincount(owner)
  chance = metrics.chance(owner, n_images=len(image))
  protocol = f"all {len(image)} images and {len(text)} texts"
  if folds > 1:
    protocol += f"; folds/: mean of {folds} folds of {len(image) // folds} images"
    parts = metrics.chance(owner, n_images=len(image), folds=folds)
    chance |= {f"folds/{name}": value for name, value in parts.items()}
  results = record(
    {name: float(value) for name, value in found.items()},
    protocol=protocol,
    n_images=len(image),
    n_texts=len(text),
    similarity=kind,
    ties=ties,
    captions_per_image={
      "min": int(captions.min()),
      "mean": float(captions.mean()),
      "max": int(captions.max()),
    },
    tie_rule=TIE_RULE,
    precision="float32 products, near ties in float64",
    chance=chance,
    **about,
  )
  return results, {**queries, "image_of_text": owner}


def check(config, split):
  """Raises UserError, before training, where a run's config asks for metrics that its split or its
  files do not allow.
  """
  truth = of_split(split, cache_dir=config.data.cache_dir)
  table.check(truth, table.of_config(config), kind=config.similarity)


def report(image, text, split, *, config, step, workdir=None, seconds=None, only=(), **more):
  """Scores a split's embeddings as a run's config asks.

  Args:
    image: [N, D] float, possibly over several devices.  text: [T, D] float.
    split: xmr.data.Split.  config: of the run.
    step: of the checkpoint.  seconds: since the command began.
    workdir: folder for results.json and queries.npz, or None to write nothing.
    only: names of the evaluators that may be scored; (): all that the config asks for.
    **more: what the run adds, see record.
  Returns:
    The results, as `of_embeddings`.
  """
  values = table.of_config(config)
  if only:
    values = table.limited(values, only)
  found, queries = of_embeddings(
    image,
    text,
    of_split(split, cache_dir=config.data.cache_dir),
    values,
    kind=config.similarity,
    dataset=config.data.name,
    split=split.name,
    step=step,
    seed=config.seed,
    seconds=seconds,
    **more,
  )
  if workdir is not None:
    files.write_arrays(pathlib.Path(workdir) / "queries.npz", queries)
    files.write_json(pathlib.Path(workdir) / "results.json", digests.sealed(found))
  return found


def command():
  """Returns the command line of this process, as one would type it again."""
  return shlex.join(["python", *sys.orig_argv[1:]])


@functools.cache
def commit():
  """Returns the git commit of this code, with "-dirty" where files differ from it, or None."""
  root = pathlib.Path(__file__).parents[2]
  if not (root / ".git").exists():
    return None
  describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
  try:
    found = subprocess.run(describe, cwd=root, capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.SubprocessError):
    return None
  return found.stdout.strip() or None


def device():
  """Returns the name of the device that scores, and how many there are of it."""
  devices = jax.devices()
  name = devices[0].device_kind
  if devices[0].platform == "cpu":
    try:
      lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
      name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
      name = platform.processor() or name
  return name if len(devices) == 1 else f"{len(devices)} x {name}"


def versions():
  """Versions of what the metrics depend on, and the kind of device."""
  devices = jax.devices()
  packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
  return {
    "xmr": __version__,
    **packages,
    "python": platform.python_version(),
    "device": f"{devices[0].platform} {devices[0].device_kind} x {len(devices)}",
  }


def line(found):
  """One line of recalls: "R@1/5/10 image to text 58.5/85.0/91.2, text to image 45.4/74.8/83.0, rsum
  437.9".
  """
  recalls = (
    f"{NAMES[direction]} " + "/".join(f"{found[f'{direction}/r{k}']:.1f}" for k in metrics.AT)
    for direction in metrics.DIRECTIONS
  )
  return f"R@1/5/10 {', '.join(recalls)}, rsum {found['rsum']:.1f}"


def shown(results):
  """A table of results for the terminal: recalls with chance beside them, the other metrics, ties.

  Args:
    results: of `of_embeddings`.
  Returns:
    Text of several lines, at most 80 columns but for the first.
  """
  found, chance = results["metrics"], results["chance"]
  step = "" if results["step"] is None else f", step {results['step']}"
  out = [
    f"{results['dataset']} {results['split']}, {results['protocol']}, {results['similarity']} "
    f"similarity{step}"
  ]
  known = set()
  for prefix in ("", "folds/"):
    if f"{prefix}rsum" not in found:
      continue
    heads = "".join(f"{f'R@{k} (chance)':>16}" for k in metrics.AT)
    out.append(f"{prefix:14}{heads}   medr   meanr")
    for direction in metrics.DIRECTIONS:
      cells = "".join(_cell(f"{prefix}{direction}/r{k}", found, chance) for k in metrics.AT)
      ranks = [found[f"{prefix}{direction}/{name}"] for name in ("medr", "meanr")]
      out.append(f"{NAMES[direction]:14}{cells}{ranks[0]:7.0f}{ranks[1]:8.1f}")
      known |= {f"{prefix}{direction}/{name}" for name in ("r1", "r5", "r10", "medr", "meanr")}
    out.append(f"{'rsum':14}{_cell(f'{prefix}rsum', found, chance)}")
    known.add(f"{prefix}rsum")
  out += [f"{name:28}{value:9.4f}" for name, value in found.items() if name not in known]
  tied = {name: n for name, n in results["ties"].items() if n}
  if tied:
    counts = ", ".join(f"{name} {n}" for name, n in tied.items())
    out.append(f"tied queries: {counts} (counted against)")
  return "\n".join([*out, *averaged(results), *verdict(results)])


def averaged(results):
  """Returns the lines of the weights between a run's start and its own; [] where none were scored.

  a is the share of the run's weights; the best by validation is marked.
  """
  if "wise" not in results:
    return []
  found = results["wise"]
  splits = [name for name in found if name not in ("start", "share")]
  best = int(np.argmax(found["val"]["rsum"]))
  heads = "".join(f"{f'{name} rsum':>12}" for name in splits)
  out = [f"weights (1 - a) {found['start']} + a this run:", f"{'a':>6}{heads}"]
  for i, share in enumerate(found["share"]):
    cells = "".join(f"{found[name]['rsum'][i]:12.1f}" for name in splits)
    out.append(f"{share:6.2f}{cells}{' (best on val)' * (i == best)}")
  return out


def verdict(results):
  """Returns [a sentence] where the recalls are within the noise of chance, else []."""
  found, chance = results["metrics"]["rsum"], results["chance"]
  noise = NOISE * chance["rsum_deviation"]
  if found > chance["rsum"] + noise:
    return []
  known = f"rsum {found:.1f} is within noise of chance ({chance['rsum']:.1f} ± {noise:.1f})"
  if chance["rsum"] + noise >= 600:
    few = results["n_images"]
    return [f"{known}, as is any result on {few} images. More images in this split would help."]
  return [
    f"{known}: nothing that the model learned shows on this split. What helps: pretrained towers, "
    "features of a pretrained network, more pairs to train on."
  ]


def _cell(name, found, chance):
  return f"{found[name]:8.1f} {f'({chance[name]:.1f})':>7}"
