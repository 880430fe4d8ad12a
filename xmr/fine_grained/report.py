"""What a run of FG-CMIR writes into its folder: metrics with those of the baselines, curves, and
plots of the labels.
"""

import pathlib

import numpy as np

from xmr.config import flat
from xmr.eval.average_precision import average_precisions, precision_recall
from xmr.eval.results import record
from xmr.fine_grained.data import Problem
from xmr.fine_grained.scores import both_directions
from xmr.fine_grained.semantic_matching import posteriors, semantic_matching

RELEASED_AT = 100  # R of AP@R in SCKR and keras_gcn
COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#57606a", "#cf222e")


def results(config, problem, embeddings, *, step, baselines=True, seconds=None):
  """Returns the content of a run's results.json.

  Queries are the test split. The gallery is the test split or, as released, the training split
  (train and val); MAP is over the whole ranking or its first 100.

  Args:
    config, problem: of the run.  embeddings: {split: (image [T, D], text [T, D])}.
    step: of the parameters that are scored.
    baselines: measure semantic matching too.  seconds: since the command began.
  Returns:
    dict with the keys of xmr.eval.results.record, "baselines": {name: metrics} and "details"; MAPs
    are in [0, 1].
  """
  image, text = embeddings["test"]
  label = problem.label["test"]
  parts = [embeddings["train"], embeddings["val"]]
  gallery = (
    np.concatenate([part[0] for part in parts]),
    np.concatenate([part[1] for part in parts]),
    np.concatenate([problem.label["train"], problem.label["val"]]),
  )
  metrics = both_directions(image, text, label)
  for prefix, where, at in (
    ("at100/", None, RELEASED_AT),
    ("train/", gallery, None),
    ("train_at100/", gallery, RELEASED_AT),
  ):
    metrics |= {
      f"{prefix}{key}": value
      for key, value in both_directions(image, text, label, gallery=where, at=at).items()
    }
  return record(
    metrics,
    dataset=config.data.name,
    split="test",
    protocol="MAP, relevant = same category; test against test unless named",
    n_images=len(image),
    n_texts=len(text),
    similarity="dot",
    step=step,
    seed=config.seed,
    seconds=seconds,
    captions_per_image={"min": 1, "mean": 1.0, "max": 1},
    tie_rule="other categories first",
    precision="float32 products",
    baselines={
      "random": random_maps(label),
      **(matching(problem) if baselines else {}),
    },
    details={
      "words": problem.graph.report if problem.graph else None,
      "loss": {key: value for key, value in flat(config.loss).items() if value is not None},
    },
  )


def matching(problem):
  """Returns {"semantic_matching": ..., "semantic_matching_words": ...}: metrics of the baseline on
  the set's own text features (LDA), where there are any, and on the words that the graph encoder
  reads.
  """
  label = problem.label["test"]
  found = {
    name: semantic_matching(posterior, label)
    for name, posterior in matching_posteriors(problem).items()
  }
  return {
    "semantic_matching": found.get("semantic_matching", found["semantic_matching_words"]),
    **found,
  }


def matching_posteriors(problem):
  """Returns {row of the table: posteriors of the test split} of semantic matching."""
  named = {"semantic_matching_words": problem.signals}
  if problem.splits["train"].text_features is not None:
    named["semantic_matching"] = {
      name: split.text_features for name, split in problem.splits.items()
    }
  return {name: posteriors(problem.images, text, problem.label) for name, text in named.items()}


def per_query(image, text, label):
  """Returns {"i2t/map", "t2i/map": [Q] average precision, "i2t/curve", "t2i/curve": [11] precision
  at levels of recall, "image_of_text": [T]}.
  """
  sides = {"i2t": (image, text), "t2i": (text, image)}
  found = {
    f"{name}/map": average_precisions(*side, label, label, kind="dot")
    for name, side in sides.items()
  }
  return (
    found
    | {
      f"{name}/curve": precision_recall(*side, label, label, kind="dot")
      for name, side in sides.items()
    }
    | {"image_of_text": np.arange(len(label))}
  )


def random_maps(label, *, seed=0):
  """MAPs of random scores on these labels, the chance level, as `both_directions`."""
  rng = np.random.default_rng(seed)
  image, text = rng.normal(size=(2, len(label), 16)).astype(np.float32)
  return both_directions(image, text, label)


def draw(workdir, problem: Problem, embeddings, similarity):
  """Writes precision_recall.png and, if pairs have labels, hardness.png and hardness.md."""
  label = problem.label["test"]
  workdir = pathlib.Path(workdir)
  image, text = embeddings["test"]
  found = {"this run": per_query(image, text, label)}
  figure = curves_figure(found, share=float(np.mean(label[:, None] == label[None, :])))
  figure.savefig(workdir / "precision_recall.png")
  if similarity is not None:
    draw_labels(workdir, problem, similarity)


def draw_labels(workdir, problem, similarity):
  """Writes hardness.png and hardness.md, which show the labels of the training pairs."""
  label = problem.label["train"]
  same = label[:, None] == label[None, :]
  histogram(similarity, same).savefig(pathlib.Path(workdir) / "hardness.png")
  (pathlib.Path(workdir) / "hardness.md").write_text(
    hard_examples(similarity, same, problem.splits["train"])
  )


def curves_figure(rows, *, share):
  """Draws interpolated precision at eleven levels of recall, image and text queries side by side.

  Args:
    rows: {name: dict with "i2t/curve" and "t2i/curve", [11] float}.
    share: of relevant items, the precision of a random ranking.
  Returns:
    matplotlib Figure.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(8, 3.6), dpi=110, facecolor="white", layout="constrained")
  for axis, (key, title) in zip(
    figure.subplots(1, 2, sharey=True),
    (("i2t/curve", "image query"), ("t2i/curve", "text query")),
    strict=True,
  ):
    for (name, row), colour, marker in zip(rows.items(), COLOURS, "o^sDvP", strict=False):
      axis.plot(
        np.linspace(0, 1, len(row[key])),
        row[key],
        marker=marker,
        markersize=3,
        color=colour,
        label=name,
      )
    axis.axhline(share, color="#6e7781", linewidth=0.8, linestyle="--", label="random")
    axis.set(xlabel="recall", title=title, xlim=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
  # Set last: the axes share this bound, and set earlier it would cut the curves of the second.
  figure.axes[0].set(ylabel="precision", ylim=(0, None))
  figure.axes[1].legend(loc="upper right", frameon=False, fontsize=8)
  return figure


def histogram(similarity, same):
  """Returns a matplotlib Figure: the histograms of g over positives (without each text's pair with
  itself) and over negatives.

  Args:
    similarity: [T, T] g in [0, 1].  same: [T, T] bool, same category.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6, 3.4), dpi=110, facecolor="white")
  axis = figure.subplots()
  apart = ~np.eye(len(same), dtype=bool)
  for name, rows, colour in (
    ("same category", same & apart, "#1a7f37"),
    ("other category", ~same, "#cf222e"),
  ):
    values = similarity[rows]
    axis.hist(
      values,
      bins=50,
      range=(0, 1),
      weights=np.full(len(values), 1 / len(values)),
      alpha=0.55,
      color=colour,
      label=f"{name}: mean {values.mean():.2f}",
    )
  axis.set(
    xlabel="g, similarity of the text with the image's own text",
    ylabel="share of pairs",
    xlim=(0, 1),
  )
  axis.legend(loc="upper right", frameon=False)
  axis.spines[["top", "right"]].set_visible(False)
  figure.tight_layout()
  return figure


def hard_examples(similarity, same, split, *, count=5, words=40):
  """Returns Markdown with the hardest positives (lowest g) and negatives (highest g) and their
  words; no text occurs twice.
  """
  lines = [
    "# Hardest training pairs",
    "",
    "g: similarity of the text with the image's own text (reconstructed label).",
    "",
  ]
  for title, allowed, sign in (
    ("Positives (same category, lowest g)", same, 1),
    ("Negatives (other category, highest g)", ~same, -1),
  ):
    lines += [f"## {title}", ""]
    allowed = np.triu(allowed, 1)
    order = np.argsort(np.where(allowed, sign * similarity, np.inf), axis=None, kind="stable")
    used, shown = set(), 0
    for index in order[: np.count_nonzero(allowed)]:
      first, second = divmod(int(index), len(same))
      if used & {first, second}:
        continue
      used |= {first, second}
      lines += [
        f"- g = {similarity[first, second]:.3f}, {split.categories[split.label[first]]} and "
        f"{split.categories[split.label[second]]}",
        f"  - text: {' '.join(split.tokens[first][:words])}",
        f"  - text of image {split.image_names[second]}: {' '.join(split.tokens[second][:words])}",
      ]
      shown += 1
      if shown == count:
        break
    lines.append("")
  return "\n".join(lines)
