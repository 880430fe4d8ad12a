"""Forms of FG-CMIR by name: the fields of the config that each sets."""

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
