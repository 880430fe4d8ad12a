"""Full-HN on Flickr30K, the setting of the paper (Mallea et al., Discovery Science 2023).

  python -m xmr.main --config=configs/fullhn_flickr.py --config.data.dir=data/flickr30k
  --workdir=runs/fullhn_flickr

Linear projections to 1024 units of EfficientNetV2-L and MPNet features (`python -m xmr.extract`
makes such files), margins 0.4, negatives mined over the whole training set at every step, 30 epochs
of 512 captions. As released, the images came through a wrong reshape:
`--config.mining.scope=released`.

  result            i2t R@1/5/10         t2i R@1/5/10         rsum
  paper F-HN        47.3 / 75.5 / 85.0   39.4 / 69.0 / 79.2   395.4
  paper HN          48.2 / 77.1 / 84.7   28.5 / 58.6 / 71.3   368.4
  paper M-HN        41.8 / 72.3 / 82.7   30.6 / 59.9 / 71.4   358.8
  paper random      40.5 / 67.5 / 80.6   32.9 / 65.1 / 76.8   363.4
  ours              not run: these features were not on the machine where this was written

Variants:
  f_hn      Full-HN: HN with the intra-modal and pair constraints (also without a variant)
  hn        hinges on the hardest negatives alone
  m_hn      the intra-modal similarity in place of the margin
  random    hinges on random negatives
  mlp       Full-HN with small networks, whose dropout and L2 act
  flickr8k_f_hn    Full-HN on the features of Flickr8k, margins 0.2, mined in the batch; minutes on
  two cores flickr8k_hn      HN there
  flickr8k_m_hn    M-HN there
  flickr8k_random  random negatives there
"""

from configs.common import fullhn

FLICKR8K = "flickr8k_"


def get_config(variant=""):
  """Returns the config of a variant, as listed above."""
  offered = tuple(FLICKR8K + name for name in fullhn.METHODS)
  if variant in offered:
    return fullhn.flickr8k(variant.removeprefix(FLICKR8K))
  return fullhn.get_config(variant, dataset="flickr30k", margin=0.4, variants=offered)
