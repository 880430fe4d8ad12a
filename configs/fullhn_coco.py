"""Full-HN on COCO, the setting of the paper (Mallea et al., Discovery Science 2023).

  python -m xmr.main --config=configs/fullhn_coco.py --config.data.dir=data/coco
  --workdir=runs/fullhn_coco

As configs/fullhn_flickr.py, with margins 0.2 (0.4 collapses HN) and the restval images in training;
the 5K test is scored whole, as in the paper. As released: `--config.mining.scope=released`. Needs a
GPU: 566,000 captions are mined at every step.

  result            i2t R@1/5/10         t2i R@1/5/10         rsum
  paper F-HN        18.8 / 42.4 / 55.9   19.5 / 42.7 / 54.7   234.0
  paper HN          23.7 / 48.8 / 61.2    9.9 / 26.2 / 37.8   207.5
  paper M-HN        18.1 / 41.3 / 54.3   14.3 / 34.8 / 46.2   209.1
  paper random      20.3 / 45.6 / 59.5   16.5 / 40.5 / 54.7   237.2
  ours              not run: these features were not on the machine where this was written

Variants:
  f_hn      Full-HN: HN with the intra-modal and pair constraints (also without a variant)
  hn        hinges on the hardest negatives alone
  m_hn      the intra-modal similarity in place of the margin
  random    hinges on random negatives
  mlp       Full-HN with small networks, whose dropout and L2 act
"""

from configs.common import fullhn


def get_config(variant=""):
  """Returns the config of a variant, as listed above."""
  config = fullhn.get_config(variant, dataset="coco", margin=0.2)
  config.data.restval = True
  return config
