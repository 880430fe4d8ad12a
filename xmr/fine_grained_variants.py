"""The rows of FG-CMIR's table: fields of the config by name."""

BASE = "pairwise_similarity"
FINE_GRAINED = "fine_grained_similarity"

VARIANTS = {
  "base": {"loss.name": BASE},
  "fine_grained": {"loss.name": FINE_GRAINED},
  "hardness": {"loss.name": FINE_GRAINED, "loss.form": "h"},
  "soft_targets": {"loss.name": FINE_GRAINED, "loss.form": "soft_targets"},
  "pair_margin": {"loss.name": FINE_GRAINED, "loss.form": "pair_margin"},
  "threshold": {"loss.name": FINE_GRAINED, "loss.form": "threshold"},
  # The text side of the base loss reads the set's own topic proportions instead of words on a graph.
  "lda": {"loss.name": BASE, "graph.signal": "features", "graph.layers": 0},
}
