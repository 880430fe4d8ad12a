"""The fields that FG-CMIR adds to those of every run, with defaults, and its named variants."""

from xmr import config as config_lib
from xmr.fields import field

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
  # A loss of each pair by itself, with the settings chosen by four-fold cross-validation on the
  # training split; the last weights are kept.
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
  # The base loss, with the set's own topic proportions as text input instead of words on a graph.
  "lda": {"loss.name": BASE, "graph.signal": "features", "graph.layers": 0},
}

# The group's own system and settings (yul_gcn), without labels: word counts, linear layers, random
# initial filters, its list of pairs.
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

RATE = {"at_least": 0, "below": 1}
COUNT = {"at_least": 1, "at_most": 2**24}

FIELDS = {
  "graph.min_count": field(9, "words that occur more than 8 times, as the group", **COUNT),
  "graph.neighbours": field(8, "nearest words that are joined by an edge", **COUNT),
  "graph.vectors": field(
    "word2vec", "trained on the training texts, or a GloVe file, relative to data.dir"
  ),
  "graph.dim": field(50, "of word2vec", at_least=1, at_most=65536),
  "graph.epochs": field(5, "of word2vec", at_least=1, at_most=10**6),
  "graph.seed": field(
    0,
    "of word2vec; not that of the run, so that seeds share one graph",
    at_least=0,
    at_most=2**32 - 1,
  ),
  "graph.signal": field(
    "tfidf",
    "count (the group), log, tfidf; features (with layers=0): the set's text features, no graph",
    choices=("count", "log", "tfidf", "features"),
  ),
  "graph.order": field(3, "K: terms of a Chebyshev convolution", at_least=1, at_most=1000),
  "graph.layers": field(2, "of the convolution", at_least=0, at_most=64),
  "graph.bias": field("node", "node (SCKR), shared or none", choices="xmr.models.graph.BIASES"),
  "graph.start": field(
    "identity",
    "of theta: identity, or xavier (released; may start dead)",
    choices="xmr.models.graph.STARTS",
  ),
  "graph.dropout": field(0.4, "on the convolved signal; the group has none", **RATE),
  "siamese.loss": field(
    "pair_cross_entropy",
    "pair_cross_entropy (yul_gcn) or pairwise_similarity (Ktena)",
    choices=(CROSS_ENTROPY, BASE),
  ),
  "siamese.steps": field(300, "of stage 1", **COUNT),
  "siamese.every": field(50, "steps between validations; the best by AUC is kept", **COUNT),
  "siamese.dropout": field(0.2, "on the product of two embeddings", **RATE),
  "pairs.scheme": field(
    "grid", "grid, balanced or released (keras_gcn)", choices="xmr.data.pairs.SCHEMES"
  ),
  "pairs.dropout": field(
    0.0, "on the product of text and image; 0.2 (yul_gcn), 0.4 (SCKR)", **RATE
  ),
  "pairs.unit_dropout": field(0.0, "on the units of a text, after `normalize`", **RATE),
  "pairs.image_dropout": field(0.4, "on the features of an image; the group has none", **RATE),
  "pairs.activation": field(
    "relu",
    "of both fully connected layers: none (SCKR), relu (keras_gcn) or tanh",
    choices="xmr.models.graph.ACTIVATIONS",
  ),
  "pairs.normalize": field(
    "none",
    "whose rows are scaled to a mean square of 1 before the product: none (the group), text, both",
    choices="xmr.models.siamese.NORMALIZED",
  ),
  "pairs.head_start": field(
    1.0,
    "factor on the drawn w of the score; below 1 starts nearer to the small scores that the loss "
    "wants",
    above=0,
    at_most=1e4,
  ),
  "pairs.image_scale": field(
    "root_standard", "of the image features", choices="xmr.fine_grained.data.SCALES"
  ),
  "similarity": field(
    "dot", "what the score of a pair is, but for a constant", choices=("dot",), resumable=True
  ),
  "table.variants": field((), "rows of a table"),
  "table.seeds": field((), "of each row; () is a single run", at_least=0, at_most=2**32 - 1),
}


def base_config():
  """Returns the locked config of the task: all fields of a run and those of the two stages."""
  return config_lib.base_config("fine_grained")


def labelled(config):
  """Returns whether the loss of stage 2 takes fine-grained labels and so needs stage 1."""
  return config.loss.name == FINE_GRAINED
