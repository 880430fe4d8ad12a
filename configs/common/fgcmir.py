"""What the FG-CMIR configs share: the fields of the two stages, and the variants by name."""

import ml_collections
from ml_collections import config_dict

from xmr.config import base_config
from xmr.errors import UserError
from xmr.fine_grained.variants import RELEASED, VARIANTS

SEEDS = (0, 1, 2, 3, 4)


def get_config(name, variant):
  """Returns the config of a dataset: "" or a key of VARIANTS, "table" for all of them with five
  seeds, or "released".

  Args:
    name: of the dataset.  variant: as above.
  """
  named = VARIANTS | {
    "": VARIANTS["fine_grained"],
    "table": VARIANTS["fine_grained"],
    "released": RELEASED,
  }
  if variant not in named:
    raise UserError(
      f"variant {variant!r} is unknown; expected one of {', '.join(v or '(none)' for v in named)}"
    )
  config = base_config()
  with config.unlocked():
    config.graph = graph = ml_collections.ConfigDict()
    graph.min_count = 9  # words that occur more than 8 times, as the group
    graph.neighbours = 8  # nearest words that are joined by an edge
    graph.vectors = (
      "word2vec"  # trained on the training texts, or a GloVe file, relative to data.dir
    )
    graph.dim = 50  # of word2vec
    graph.epochs = 5  # of word2vec
    graph.seed = 0  # of word2vec; not that of the run, so that seeds share one graph
    # count (the group) · log · tfidf · features (with layers=0: the set's text features, no graph)
    graph.signal = "tfidf"
    graph.order = 3  # K: terms of a Chebyshev convolution
    graph.layers = 2
    graph.bias = "node"  # node (SCKR) · shared · none
    graph.start = "identity"  # of theta: identity · xavier (released; may start dead)
    graph.dropout = 0.4  # on the convolved signal; the group has none
    config.siamese = siamese = ml_collections.ConfigDict()
    siamese.loss = (
      "pair_cross_entropy"  # pair_cross_entropy (yul_gcn) · pairwise_similarity (Ktena)
    )
    siamese.steps = 300
    siamese.every = 50  # steps between validations; the best by AUC is kept
    siamese.dropout = 0.2  # on the product of two embeddings
    config.pairs = pairs = ml_collections.ConfigDict()
    pairs.scheme = "grid"  # grid · balanced · released (keras_gcn)
    pairs.dropout = 0.0  # on the product of text and image; 0.2 (yul_gcn), 0.4 (SCKR)
    pairs.unit_dropout = 0.0  # on the units of a text, after `normalize`
    pairs.image_dropout = 0.4  # on the features of an image; the group has none
    pairs.activation = (
      "relu"  # of both fully connected layers: none (SCKR) · relu (keras_gcn) · tanh
    )
    # whose rows are scaled to a mean square of 1 before the product: none (the group) · text · both
    pairs.normalize = "none"
    # factor on the drawn w of the score; below 1 starts nearer to the small scores that the loss
    # wants
    pairs.head_start = 1.0
    pairs.image_scale = "root_standard"  # none · standard · root_standard · unit
    config.loss.threshold = config_dict.placeholder(
      float
    )  # hardness from which a pair counts, in the form of that name
    config.table = ml_collections.ConfigDict(
      {"variants": (), "seeds": ()}
    )  # rows of a table; () is a single run
  config.task = "fine_grained"
  config.data.name = name
  config.data.dir = f"data/{name}"
  config.data.image = "features"
  config.data.image_features = "raw_features.mat"
  config.batch_size = 25600  # 160 texts with 160 images
  config.epochs = 0.0
  config.steps = 600
  config.evaluate.epochs = 0.0
  config.evaluate.steps = 100
  config.optimizer.learning_rate = 3e-3
  config.optimizer.schedule = "cosine"
  config.optimizer.l2 = 2e-4  # 5e-3 (yul_gcn)
  config.log.tensorboard = False
  config.update_from_flattened_dict(named[variant])
  if variant == "table":
    # Forty trainings: fewer words and dimensions, so that one CPU core does one in about half a
    # minute.
    config.graph.min_count = 30
    config.model.dim = 64
    config.table.variants = tuple(VARIANTS)
    config.table.seeds = SEEDS
  return config
