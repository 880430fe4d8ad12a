"""FG-CMIR on English Wikipedia (Xu et al., ICCS 2019): 2,173 training and 693 test pairs, ten categories.

  python -m xmr.main --config=configs/fgcmir_wiki.py --config.data.dir=data/wikipedia --workdir=runs/fgcmir

One run of the base loss, seed 0, with --config.graph.min_count=30 --config.model.dim=64 (MAP, test against test):

  result                       image query   text query   mean
  base loss                    0.299         0.229        0.264
  semantic matching, SIFT+LDA  0.318         0.245        0.282   same run, SIFT scaled as here (root, standard)

On two folds of the training split (image query, text query; one seed): the same after 400 steps 0.309, 0.229; after 600
steps with dropout 0.5 on both sides and batches of 65536 0.314, 0.233; with --config.pairs.normalize=text
--config.pairs.head_start=0.01 --config.graph.dropout=0.6 --config.pairs.image_dropout=0.6 --config.optimizer.l2=1e-5
--config.steps=300 --config.batch_size=65536 0.322, 0.234; two logistic regressions on the same inputs 0.337, 0.238. On the
test split these fields, in batches of 25600, gave no more than the defaults (0.325, 0.241 against 0.324, 0.246, five seeds).

The label formula and the weighted loss are a reconstruction; the base system is that of the group's released code.

Variants:
  base          the pairwise similarity loss, without labels
  fine_grained  weights 1 + beta h (the default)
  hardness      weights h
  soft_targets  similarity labels as targets of the scores
  pair_margin   a margin per pair
  threshold     only pairs of hardness 0.5 and above
  cross_entropy  every pair by itself, without labels: texts of unit rows, more dropout, larger batches
  table         all of these with five seeds, semantic matching beside them, and paired tests
"""

from configs import fgcmir


def get_config(variant=""):
  """Returns the config of a variant."""
  return fgcmir.get_config("wikipedia", variant)
