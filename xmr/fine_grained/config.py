"""The fields of FG-CMIR beside those of every run, with their defaults, and its forms by name."""

import ml_collections
from ml_collections import config_dict

from xmr import config as config_lib

BASE = "pairwise_similarity"
CROSS_ENTROPY = "pair_cross_entropy"
FINE_GRAINED = "fine_grained_similarity"

# Rows of the table.
VARIANTS = {
  "base": {"loss.name": BASE},
  "fine_grained": {"loss.name": FINE_GRAINED},
  "hardness": {"loss.name": FINE_GRAINED, "loss.form": "h"},
  "soft_targets": {"loss.name": FINE_GRAINED, "loss.form": "soft_targets"},
  "pair_margin": {"loss.name": FINE_GRAINED, "loss.form": "pair_margin"},
  "threshold": {"loss.name": FINE_GRAINED, "loss.form": "threshold"},
  # Every pair by itself, with the fields that four folds of the training split chose; the last
  # weights are kept.
  "cross_entropy": {
    "loss.name": CROSS_ENTROPY,
    "model.dim": 512,
    "pairs.normalize": "text",
    "graph.dropout": 0.7,
    "pairs.unit_dropout": 0.7,
    "pairs.image_dropout": 0.5,
    "batch_size": 65536,
    "steps": 800,
    "evaluate.steps": 800,
  },
  # The text side of the base loss reads the set's own topic proportions instead of words on a
  # graph.
  "lda": {"loss.name": BASE, "graph.signal": "features", "graph.layers": 0},
}

# The group's own system and settings (yul_gcn), without labels: counts, linear layers, drawn
# filters, its list of pairs.
RELEASED = {
  "loss.name": BASE,
  "graph.signal": "count",
  "graph.start": "xavier",
  "graph.dropout": 0.0,
  "pairs.scheme": "released",
  "pairs.dropout": 0.2,
  "pairs.image_dropout": 0.0,
  "pairs.activation": "none",
  "pairs.image_scale": "none",
  "pairs.normalize": "none",
  "pairs.head_start": 1.0,
  "batch_size": 256,
  "steps": 0,
  "epochs": 50.0,
  "evaluate.steps": 0,
  "evaluate.epochs": 1.0,
  "optimizer.l2": 5e-3,
  "optimizer.learning_rate": 1e-3,
  "optimizer.schedule": "step",
  "optimizer.decay": 0.95,
  "optimizer.decay_epochs": 1.0,
}


def base_config():
  """Returns the locked config of the task: all fields of a run, and those of the two stages."""
  config = config_lib.base_config()
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
  return config


def labelled(config):
  """Returns whether the loss of stage 2 takes fine-grained labels, so that stage 1 is needed."""
  return config.loss.name == FINE_GRAINED
