"""A run of FG-CMIR as xmr.inspect shows it: captions become signals on the run's own word graph."""

import functools

import jax
import numpy as np

from xmr.data import text_graph
from xmr.data.labelled import LAYOUTS, segmenter
from xmr.errors import UserError
from xmr.fine_grained.data import FEATURES, Scale
from xmr.fine_grained.two_stage import pair_score
from xmr.inspect import runs
from xmr.models.graph import Laplacian


class Run(runs.Run):
  """A trained run of both stages; see xmr.inspect.runs.Run.

  Images are features in the scale of the feature file; texts are str, or the set's own text
  features with config.graph.signal=features. Scores are dot products, without the constant of the
  pair score.
  """

  def build(self):
    """Returns the network of stage 2."""
    if "image" not in self.params:
      raise UserError(
        f"{self.workdir} is stage 1 of a run, a network of texts alone; expected the folder above"
      )
    if "columns" not in self.inputs:
      raise UserError(
        f"{self.workdir} keeps no word graph (inputs.npz), as runs of earlier versions; python -m "
        "xmr.main --eval_only --workdir=DIR writes it"
      )
    with self.config.unlocked():
      self.config.similarity = "dot"  # Earlier versions recorded another name, which nothing read.
    return pair_score(self.config)

  @functools.cached_property
  def graph(self):
    """The words of the run, their weights and their Laplacian."""
    kept = self.inputs
    words = kept["words"].tolist() if "words" in kept else []
    return text_graph.TextGraph(
      words, kept["values"], kept["columns"], kept["starts"], kept.get("idf", np.zeros(0)), {}
    )

  @functools.cached_property
  def _segment(self):
    layout = LAYOUTS.get(self.config.data.name)
    return segmenter() if layout is not None and layout.chinese else str.split

  def encode_image(self, pictures, *, batch_size=None, progress=False):
    """Encodes [N, F] float features, in the scale of the feature file, into [N, D] float32."""
    x = self._features(pictures, side="image")
    return self._encode(self._by("image", x, batch_size), len(x), side="image", progress=progress)

  def encode_text(self, texts, *, batch_size=None, progress=False):
    """Encodes T str (or one), or [T, F] float features, into [T, D] float32.

    Raises:
      UserError: a text without a word of the graph.
    """
    if self.config.graph.signal == FEATURES:
      x = self._features(texts, side="text")
    else:
      tokens = [self._segment(text.lower()) for text in self._texts(texts)]
      x = text_graph.signal(tokens, self.graph, kind=self.config.graph.signal)
    return self._encode(self._by("text", x, batch_size), len(x), side="text", progress=progress)

  @property
  def known_words(self):
    """How many words the graph has; 0 where captions are features."""
    return len(self.graph.words)

  def unknown_words(self, text):
    """Returns (words of a text that the graph lacks, all its words), two lists of str."""
    words = self._segment(text.lower())
    return [word for word in words if word not in set(self.graph.words)], words

  def embeddings(self, split):
    """Returns (image [N, D], text [T, D]) float32 of a split of the run's data."""
    # Splits hold features as they are in the file.
    text = split.text_features if self.config.graph.signal == FEATURES else split.texts
    return self.encode_image(np.asarray(split.image_features, np.float32)), self.encode_text(text)

  def _scaled(self, x, side):
    kind = self.config.pairs.image_scale if side == "image" else "standard"
    kept = {name: self.inputs.get(f"{side}_{name}") for name in ("mean", "deviation")}
    return Scale(kind, **kept)(x)

  def _batch(self, batch, side):
    laplacian = Laplacian(self.graph.values, self.graph.columns, self.graph.starts)
    return _encode(self._on_device, batch[side], laplacian, model=self.model, side=side)


@functools.partial(jax.jit, static_argnames=("model", "side"))
def _encode(variables, x, laplacian, *, model, side):
  if side == "image":
    return model.apply(variables, x, method="encode_image")
  return model.apply(variables, x, laplacian, method="encode_text")
