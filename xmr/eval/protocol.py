"""Embeddings and ground truth in, named figures and results.json out."""

import importlib.metadata
import pathlib
import platform

import jax
import numpy as np

from xmr import __version__, files
from xmr.errors import UserError
from xmr.eval import exact, metrics
from xmr.eval.blocks import BLOCK, placement_of
from xmr.eval.ranks import count

# Folds by the name that papers use: Flickr's tests are scored whole, COCO's 5,000 images whole and
# as five times 1,000.
PROTOCOLS = {"flickr": 1, "coco": 5}
TIE_RULE = "pessimistic: every non-positive that scores as the best positive stands before it"


def recall(image, text, image_of_text, *, folds=1, kind="cosine", block=BLOCK):
  """Recall at 1, 5 and 10, median and mean rank, image to text and text to image.

  An image finds its best text, a text its one image; ties count against the query (see `ranks`).
  Both directions come from one pass over the products. With folds, images are split into equal
  consecutive parts with their texts, each is scored on its own, and the figures are averaged; rsum
  is the plain sum of the averages.

  Args:
    image: [N, D] float.  text: [T, D] float, in any order, any number (at least 1) per image.
    image_of_text: [T] int, row of image that each text describes.
    folds: parts, a divisor of N; 5 is COCO's 1K protocol.
    kind: "cosine", "dot" or "order".  block: images at a time.
  Returns:
    {"i2t/r1", "i2t/r5", "i2t/r10", "i2t/medr", "i2t/meanr", "t2i/...", "rsum"}: recalls in percent,
    ranks from 1; {"i2t/ties", "t2i/ties"}: queries whose best positive is not alone at its score,
    summed over folds.
  Raises:
    UserError: shapes, NaN (names the array and the row), an image without a text, folds that do not
      divide the images.
  References:
    VSE++ `evaluation.i2t`, `evaluation.t2i`, as released, but for the sum over folds, which is
    printed six times too big.
  """
  placement = placement_of(image)
  image, text = exact.sides(image, text, kind=kind, names=("image", "text"))
  image_of_text = checked_image_of_text(image_of_text, n_texts=len(text), n_images=len(image))
  fold = metrics.fold_of(image_of_text, n_images=len(image), folds=folds)
  size = len(image) // folds
  figures = []
  for f in range(folds):
    rows = np.flatnonzero(fold == f)
    # A slice where it can be: a view, not a copy.
    texts = slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] + 1 == len(rows) else rows
    pairs = image_of_text[rows] - f * size, np.arange(len(rows))
    sides = count(
      image.take(slice(f * size, (f + 1) * size)),
      text.take(texts),
      pairs,
      kind=kind,
      block=block,
      placement=placement,
    )
    ties = {
      f"{name}/ties": int(np.count_nonzero(side["ties"]))
      for name, side in zip(metrics.DIRECTIONS, sides, strict=True)
    }
    figures.append({**metrics.both_directions(*(side["rank"] for side in sides)), **ties})
  return metrics.mean_of_folds(figures)


def checked_image_of_text(image_of_text, *, n_texts, n_images):
  """Returns [T] int64; UserError where the shape is another, an image does not exist or has no
  text.
  """
  index = np.asarray(image_of_text)
  if index.shape != (n_texts,) or index.dtype.kind not in "iu":
    raise UserError(
      f"image_of_text is {index.dtype} of shape {index.shape}; expected integers of shape "
      f"({n_texts},)"
    )
  outside = np.flatnonzero((index < 0) | (index >= n_images))
  if len(outside):
    raise UserError(
      f"image_of_text[{outside[0]}] is {index[outside[0]]}; expected 0 to {n_images - 1}"
    )
  bare = np.flatnonzero(np.bincount(index, minlength=n_images) == 0)
  if len(bare):
    raise UserError(
      f"image {bare[0]} has no text ({len(bare)} of {n_images} have none); expected at least one"
    )
  return index.astype(np.int64)


def score(image, text, image_of_text, *, folds=1, kind="cosine"):
  """All figures of a protocol: `recall` of the whole set, and with folds their averages beside it
  as "folds/i2t/r1".
  """
  figures = recall(image, text, image_of_text, kind=kind)
  if folds > 1:
    parts = recall(image, text, image_of_text, folds=folds, kind=kind)
    figures |= {f"folds/{name}": value for name, value in parts.items()}
  return figures


def results(
  image, text, image_of_text, *, dataset, split, step, seed, folds=1, kind="cosine", extra=None
):
  """What results.json holds: the figures and all that is needed to know which figures they are.

  Args:
    image, text, image_of_text, folds, kind: as `recall`.
    dataset, split: names.  step: of the checkpoint, or None.  seed: of the run, or None.
    extra: further figures by name, or None.
  Returns:
    {"dataset", "split", "protocol", "n_images", "n_texts", "captions_per_image": {"min", "mean",
    "max"}, "step", "similarity", "tie_rule", "ties": {"i2t": tied queries, ...}, "precision",
    "metrics", "versions", "seed"}.
  """
  figures = {**score(image, text, image_of_text, folds=folds, kind=kind), **(extra or {})}
  ties = {
    name.removesuffix("/ties"): figures.pop(name)
    for name in list(figures)
    if name.endswith("/ties")
  }
  captions = np.bincount(image_of_text)
  whole = f"all {len(image)} images and {len(text)} texts"
  return {
    "dataset": dataset,
    "split": split,
    "protocol": whole
    if folds == 1
    else f"{whole}; folds/: mean of {folds} folds of {len(image) // folds} images",
    "n_images": len(image),
    "n_texts": len(text),
    "captions_per_image": {
      "min": int(captions.min()),
      "mean": float(captions.mean()),
      "max": int(captions.max()),
    },
    "step": None if step is None else int(step),
    "similarity": kind,
    "tie_rule": TIE_RULE,
    "ties": ties,
    "precision": "float32 products, near ties in float64",
    "metrics": figures,
    "versions": versions(),
    "seed": seed,
  }


def report(image, text, split, *, config, step, workdir=None, extra=None):
  """Scores a split's embeddings as a run's config asks, and writes results.json into workdir where
  one is given.

  Args:
    image, text: [N, D], [T, D] float.  split: with `.name` and `.image_of_text`.
    config: the run's (data.name, evaluate.folds, similarity, seed).  step: of the checkpoint.
    workdir: folder, or None to write nothing.  extra: further figures by name, or None.
  Returns:
    The results, as `results`.
  """
  found = results(
    image,
    text,
    split.image_of_text,
    dataset=config.data.name,
    split=split.name,
    step=step,
    seed=config.seed,
    folds=config.evaluate.folds,
    kind=config.similarity,
    extra=extra,
  )
  if workdir is not None:
    files.write_json(pathlib.Path(workdir) / "results.json", found)
  return found


def versions():
  """Versions of what the figures depend on, and the device."""
  devices = jax.devices()
  packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
  return {
    "xmr": __version__,
    **packages,
    "python": platform.python_version(),
    "device": f"{devices[0].platform} {devices[0].device_kind} x {len(devices)}",
  }


def line(figures, prefix=""):
  """One line: "i2t 58.5/85.0/91.2  t2i 45.4/74.8/83.0  rsum 437.9"."""
  recalls = (
    f"{direction} " + "/".join(f"{figures[f'{prefix}{direction}/r{k}']:.1f}" for k in metrics.AT)
    for direction in metrics.DIRECTIONS
  )
  return "  ".join([*recalls, f"rsum {figures[f'{prefix}rsum']:.1f}"])


def table(found):
  """A table of results for the terminal, with counts, protocol and ties."""
  figures = found["metrics"]
  columns = [*(f"r{k}" for k in metrics.AT), "medr", "meanr"]
  out = [
    f"{found['dataset']} {found['split']}, {found['protocol']}, {found['similarity']} "
    f"similarity, step {found['step']}"
  ]
  for prefix in ("", "folds/"):
    if f"{prefix}rsum" not in figures:
      continue
    out.append(f"{prefix:12}" + "".join(f"{name:>9}" for name in columns))
    for direction in metrics.DIRECTIONS:
      out.append(
        f"{direction:12}"
        + "".join(f"{figures[f'{prefix}{direction}/{name}']:9.1f}" for name in columns)
      )
    out.append(f"{'rsum':12}{figures[f'{prefix}rsum']:9.1f}")
  known = {f"{p}{d}/{c}" for p in ("", "folds/") for d in metrics.DIRECTIONS for c in columns} | {
    "rsum",
    "folds/rsum",
  }
  out += [f"{name:28}{value:9.4f}" for name, value in figures.items() if name not in known]
  tied = sum(found["ties"].values())
  if tied:
    out.append(
      f"tied queries: {', '.join(f'{name} {n}' for name, n in found['ties'].items() if n)} "
      "(counted against)"
    )
  return "\n".join(out)
