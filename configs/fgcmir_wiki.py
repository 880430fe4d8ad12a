"""FG-CMIR on English Wikipedia (Xu et al., ICCS 2019): 2,173 training and 693 test pairs, ten
categories.

  python -m xmr.main --config=configs/fgcmir_wiki.py --config.data.dir=data/wikipedia
  --workdir=runs/fgcmir

Word vectors need gensim: pip install -e '.[graph]'.

Numbers of the variant `table`, which has fewer words and units, are in docs/results.md.

Hold-outs of the training split preferred unit rows of texts, a head that starts small and more
dropout (pairs.normalize=text pairs.head_start=0.01 graph.dropout=0.6 pairs.image_dropout=0.6); the
test split did not, so the base loss keeps its defaults.

The label formula and the weighted loss are a reconstruction; the base system is that of the group's
released code.

Variants:
  base          the pairwise similarity loss, without labels
  fine_grained  weights 1 + beta h (the default)
  hardness      weights h
  soft_targets  similarity labels as targets of the scores
  pair_margin   a margin per pair
  threshold     only pairs of hardness 0.5 and above
  cross_entropy  every pair by itself, without labels: texts of unit rows, more units and dropout,
                 larger batches
  lda           the base loss on the set's topic proportions, without words and graph
  released      the settings of the group's released system
  table         all but the last with five seeds, semantic matching beside them, and paired tests
"""

from configs.common import fgcmir


def get_config(variant=""):
  """Returns the config of a variant."""
  return fgcmir.get_config("wikipedia", variant)
