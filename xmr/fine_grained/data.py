"""The data of both stages of FG-CMIR and of their baselines: texts as signals on the word graph,
scaled image features, and labels.
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np

from xmr import data
from xmr.data import text_graph
from xmr.errors import UserError
from xmr.models.graph import Laplacian
from xmr.ops.unit import unit

SCALES = ("none", "standard", "root_standard", "unit")
FEATURES = (
  "features"  # graph.signal: the set's own text features, a baseline without words and graph
)


@dataclasses.dataclass(frozen=True)
class Problem:
  """A labelled data set, ready for the device; every dict has the keys train, val and test.

  Attributes:
    splits: Split.  digests: of data.digests.
    graph: TextGraph; None where the signal is not words.  laplacian: Laplacian.
    signals: [T, N] float32.  images: [T, F] float32, scaled.  label: [T] int32; row i of each is
      pair i.
  """

  splits: dict[str, data.Split]
  digests: dict[str, str]
  graph: text_graph.TextGraph | None
  laplacian: Laplacian
  signals: dict
  images: dict
  label: dict


def load(config, *, splits=None):
  """Returns the Problem of a config.

  The graph is built from the texts of train and val, which are the official training split.

  Args:
    config: of the run.  splits: {name: Split} if they have been read already, else None.
  """
  section = config.graph
  splits = splits or data.load(config)
  missing = {"train", "val", "test"} - set(splits)
  if missing or any(
    split.label is None or split.image_features is None for split in splits.values()
  ):
    raise UserError(
      f"config.data.name={config.data.name}: expected train, val and test with categories and "
      "image features"
    )
  graph = None
  if section.signal == FEATURES:
    if section.layers or splits["train"].text_features is None:
      raise UserError(
        f"config.graph.signal={FEATURES} is a baseline without a graph; expected "
        "config.graph.layers=0, and text features"
      )
    signals = scale({name: split.text_features for name, split in splits.items()}, "standard")
    columns = signals["train"].shape[1]
    laplacian = Laplacian(jnp.zeros(0), jnp.zeros(0, jnp.int32), jnp.zeros(columns + 1, jnp.int32))
  else:
    graph = graph_of(config, splits)
    laplacian = jax.tree.map(jnp.asarray, Laplacian(graph.values, graph.columns, graph.starts))
    signals = {
      name: text_graph.signal(split.tokens, graph, kind=section.signal, names=split.image_names)
      for name, split in splits.items()
    }
  return Problem(
    splits=splits,
    digests=data.digests(splits),
    graph=graph,
    laplacian=laplacian,
    signals=signals,
    images=scale(
      {name: split.image_features for name, split in splits.items()}, config.pairs.image_scale
    ),
    label={name: split.label for name, split in splits.items()},
  )


def graph_of(config, splits):
  """Returns the TextGraph of the words of train and val."""
  section = config.graph
  vectors = section.vectors
  if vectors != "word2vec":
    vectors = os.path.join(os.path.expanduser(config.data.dir), os.path.expanduser(vectors))
  graph = text_graph.build(
    splits["train"].tokens + splits["val"].tokens,
    min_count=section.min_count,
    neighbours=section.neighbours,
    vectors=vectors,
    dim=section.dim,
    epochs=section.epochs,
    seed=section.seed,
    cache_dir=config.data.cache_dir,
  )
  print("words: " + ", ".join(f"{name} {value:,}" for name, value in graph.report.items()))
  return graph


@dataclasses.dataclass(frozen=True)
class Scale:
  """A scaling of features, with the statistics of the training part alone.

  standard: (x - mean) / deviation per column.
  root_standard: the same of sign(x) sqrt|x|; it suits histograms (Arandjelovic and Zisserman,
    CVPR 2012).
  unit: rows of unit length.

  Attributes:
    kind: as above, or "none".
    mean, deviation: [F] float32 for the two standard kinds; else None.
  """

  kind: str
  mean: np.ndarray | None = None
  deviation: np.ndarray | None = None

  @classmethod
  def of(cls, x, kind):
    """Returns the Scale fitted to features [N, F] of the training part."""
    if kind not in SCALES:
      raise UserError(f"config.pairs.image_scale is {kind!r}; expected one of {', '.join(SCALES)}")
    if kind not in ("standard", "root_standard"):
      return cls(kind)
    x = cls._root(np.asarray(x, np.float32), kind)
    deviation = x.std(axis=0)
    return cls(kind, x.mean(axis=0), np.where(deviation > 0, deviation, np.float32(1)))

  def __call__(self, x):
    """Returns features [N, F] in this scale, float32."""
    x = np.asarray(x, np.float32)
    if self.kind == "none":
      return x
    if self.kind == "unit":
      return unit(x)
    return (self._root(x, self.kind) - self.mean) / self.deviation

  @staticmethod
  def _root(x, kind):
    return np.sign(x) * np.sqrt(np.abs(x)) if kind == "root_standard" else x


def scale(features, kind):
  """Returns {split: [N, F] float32}: features of all splits in the Scale of the training part."""
  scaled = Scale.of(features["train"], kind)
  return {name: scaled(x) for name, x in features.items()}


def inputs_of(config, problem):
  """Returns what a run keeps to encode raw features and words without its data: the graph's words,
  idf and Laplacian, and the means and deviations of features.
  """
  graph, train = problem.graph, problem.splits["train"]
  kept = {
    name: np.asarray(getattr(problem.laplacian, name)) for name in ("values", "columns", "starts")
  }
  if graph is not None:
    kept |= {"words": np.array(graph.words), "idf": graph.idf}
  scales = {"image": Scale.of(train.image_features, config.pairs.image_scale)}
  if graph is None:
    scales["text"] = Scale.of(train.text_features, "standard")
  for side, found in scales.items():
    if found.mean is not None:
      kept |= {f"{side}_mean": found.mean, f"{side}_deviation": found.deviation}
  return kept
