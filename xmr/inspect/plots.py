"""Plots of what a model retrieves."""

import contextlib
import functools
import pathlib
import textwrap

import numpy as np

from xmr.data import images
from xmr.data.files import read_file
from xmr.errors import UserError
from xmr.eval import similarity, top_k
from xmr.eval.alignment import pooled
from xmr.ops.alignment import Tokens

RIGHT, WRONG, INK = "#1a7f37", "#b8b8b8", "#1f2328"


def picture(split, row, *, folder=""):
  """Returns image `row` of a split as a PIL image, None where there are features and no image file.

  Args:
    split: xmr.data.Split.  row: int.
    folder: the dataset's folder. Where the split holds no pixels, the file is looked for here and
      in images/ below it.
  """
  name, root = split.image_names[row], pathlib.Path(folder).expanduser()
  reads = [functools.partial(read_file, root / part / name) for part in ("images", "")]
  if split.pixels is not None:
    reads = [lambda: split.pixels[row]]
  for read in reads:
    with contextlib.suppress(UserError):
      return images.decode(read(), name=name)
  return None


def retrieved(image, text, split, *, kind="cosine", folder="", rows=6, k=5, seed=0):
  """Draws captions, each with the k images that score highest; the caption's own image has a green
  frame.

  Args:
    image: [N, D] float.  text: [T, D] float; embeddings of the split.
    split: xmr.data.Split.
    kind: of similarity.
    folder: the dataset's folder, see picture().
    rows: captions to draw, chosen by `seed`.
    k: images per caption.
  Returns:
    matplotlib Figure.
  """
  from matplotlib.figure import Figure

  chosen = np.random.default_rng(seed).choice(len(text), min(rows, len(text)), replace=False)
  k = min(k, len(image))
  scores, found = (np.asarray(x) for x in top_k(text[chosen], image, k, kind=kind, text_query=True))
  figure = Figure(figsize=(2.2 + 1.25 * k, 1.45 * len(chosen)), dpi=110, facecolor="white")
  axes = figure.subplots(
    len(chosen), k + 1, squeeze=False, gridspec_kw={"width_ratios": [1.9] + [1] * k}
  )
  for line, row in zip(axes, chosen, strict=True):
    query = line[0]
    query.axis("off")
    caption = textwrap.fill(split.texts[row], 26)
    query.text(
      0,
      0.5,
      caption,
      va="center",
      fontsize=8,
      color=INK,
      transform=query.transAxes,
      parse_math=False,
    )
    at = np.flatnonzero(chosen == row)[0]
    for place, axis in enumerate(line[1:]):
      right = found[at, place] == split.image_of_text[row]
      shown = picture(split, int(found[at, place]), folder=folder)
      axis.set_xticks([])
      axis.set_yticks([])
      if shown is None:
        name = split.image_names[found[at, place]][:14]
        axis.text(0.5, 0.5, name, ha="center", va="center", fontsize=6, parse_math=False)
      else:
        axis.imshow(shown)
      axis.set_xlabel(
        f"{place + 1}: {scores[at, place]:.2f}",
        fontsize=7,
        color=RIGHT if right else INK,
        labelpad=2,
      )
      for side in axis.spines.values():
        side.set_color(RIGHT if right else WRONG)
        side.set_linewidth(3 if right else 0.6)
  figure.suptitle(
    f"{split.name}: captions and their {k} best of {len(image):,} images", fontsize=9, color=INK
  )
  figure.tight_layout(rect=(0, 0, 1, 0.98))
  return figure


def pixels(figure):
  """Returns a drawn figure as [H, W, 3] uint8."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3]


def curves(runs, names=("train/loss", "val/rsum", "val/i2t/r1", "val/t2i/r1")):
  """Draws the curves of one or more runs, one axis per name.

  Args:
    runs: {label: Run.metrics}.  names: curves; those that no run has are left out.
  Returns:
    matplotlib Figure.
  """
  from matplotlib.figure import Figure

  names = [name for name in names if any(name in metrics for metrics in runs.values())]
  figure = Figure(figsize=(3.6 * max(1, len(names)), 2.8), layout="constrained")
  for axis, name in zip(
    figure.subplots(1, max(1, len(names)), squeeze=False)[0], names, strict=False
  ):
    for label, metrics in runs.items():
      if name in metrics:
        steps, values = metrics[name]
        axis.plot(steps, values, label=label, marker="." if len(steps) < 20 else None)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("step")
  figure.axes[-1].legend(loc="upper right", fontsize=8)
  return figure


def matrix(scores, *, match=None):
  """Draws the similarity matrix of a batch; a dot marks where text j describes image i.

  Args:
    scores: [B, B'] float, images by texts.  match: [B, B'] bool; None is the identity.
  Returns:
    matplotlib Figure.
  """
  from matplotlib.figure import Figure

  scores = np.asarray(scores)
  figure = Figure(figsize=(5, 4), layout="constrained")
  axis = figure.subplots()
  shown = axis.imshow(scores, cmap="viridis", aspect="auto", interpolation="nearest")
  rows, columns = np.nonzero(np.eye(*scores.shape, dtype=bool) if match is None else match)
  axis.scatter(columns, rows, s=8, c="white", edgecolors="black", linewidths=0.4)
  axis.set(xlabel="text", ylabel="image")
  figure.colorbar(shown, label="similarity")
  return figure


def positives(image, text, image_of_text, *, kind="cosine"):
  """Draws how far positives stand above the hardest negatives, across modalities and within them.

  Across: the score of each text's own image, and of its best other image. Within: each text's best
  other text of the same image, and its best text of another image; and each image's best other
  image, which is always a negative.

  Args:
    image: [N, D] float.  text: [T, D] float.  image_of_text: [T] int.  kind: of similarity.
  Returns:
    matplotlib Figure.
  """
  from matplotlib.figure import Figure

  image_of_text = np.asarray(image_of_text)
  cross = np.array(similarity(text, image, kind=kind, text_query=True))
  own = np.arange(len(text)), image_of_text
  panels = {"text to image": [("positive", cross[own].copy())]}
  cross[own] = -np.inf
  panels["text to image"].append(("hardest negative", cross.max(axis=1)))
  texts = np.array(similarity(text, text, kind=kind))
  same = image_of_text[:, None] == image_of_text[None]
  panels["text to text"] = [("hardest negative", np.where(same, -np.inf, texts).max(axis=1))]
  np.fill_diagonal(same, False)
  panels["text to text"].insert(
    0, ("best of the same image", np.where(same, texts, -np.inf).max(axis=1))
  )
  images = np.array(similarity(image, image, kind=kind))
  np.fill_diagonal(images, -np.inf)
  panels["image to image"] = [("nearest other image", images.max(axis=1))]
  figure = Figure(figsize=(11, 2.8), layout="constrained")
  for axis, (title, groups) in zip(figure.subplots(1, 3), panels.items(), strict=True):
    for label, values in groups:
      axis.hist(values[np.isfinite(values)], bins=40, alpha=0.6, label=label)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("similarity")
    axis.legend(loc="upper right", fontsize=8)
  return figure


def plane(image, text):
  """Projects both modalities on the two main axes of all points together.

  Args:
    image: [N, D] float.  text: [T, D] float.
  Returns:
    ([N, 2], [T, 2]) float: principal components of the N + T points about their common mean.
  """
  points = np.concatenate([image, text]).astype(np.float64)
  points -= points.mean(axis=0)
  axes = np.linalg.svd(points, full_matrices=False)[2][:2]
  placed = points @ axes.T
  return placed[: len(image)], placed[len(image) :]


def modality_map(image, text, image_of_text, *, lines=40):
  """Draws the 2-D map of images and texts; thin lines join some texts with their images.

  Args:
    image: [N, D] float.  text: [T, D] float; of Tokens their means.  image_of_text: [T] int.
    lines: texts that are joined.
  Returns:
    matplotlib Figure.
  """
  from matplotlib.figure import Figure

  if isinstance(image, Tokens):
    image, text = pooled(image, name="image"), pooled(text, name="text")
  pictures, captions = plane(image, text)
  figure = Figure(figsize=(6, 5), layout="constrained")
  axis = figure.subplots()
  for row in np.linspace(0, len(text) - 1, min(lines, len(text))).astype(int):
    ends = np.stack([captions[row], pictures[image_of_text[row]]])
    axis.plot(*ends.T, color=WRONG, linewidth=0.6, zorder=0)
  axis.scatter(*captions.T, s=6, alpha=0.5, label="texts")
  axis.scatter(*pictures.T, s=14, alpha=0.8, label="images", marker="s")
  axis.set(xlabel="first principal component", ylabel="second")
  axis.legend(loc="upper right", fontsize=8)
  return figure
