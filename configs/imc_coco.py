"""IMC on COCO (Chen et al., ICIP 2022): 113,287 training images with restval; 1K in five folds, and
5K.

  python -m xmr.main --config=configs/imc_coco.py --config.data.dir=data/coco
  --workdir=runs/imc_coco

The encoders and the schedule of configs/imc_flickr.py. Needs a GPU, the photographs, GloVe and
converted weights.

  result       i2t R@1/5/10         t2i R@1/5/10         rsum
  paper 1K     65.3 / 90.8 / 96.4   53.9 / 86.0 / 93.6   486.0
  paper 5K     41.1 / 71.5 / 81.9   30.6 / 61.7 / 74.1   360.9
  ours         not run: no photographs, weights or GPU on the machine where this was written

Variants:
  frozen      the released command: the CNN is not trained
"""

from configs.common import flickr


def get_config(variant=""):
  """Returns the config of a variant: "" or "frozen"."""
  config = flickr.get_config("imc", variant, variants=("", "frozen"))
  config.data.name = "coco"
  config.data.dir = "data/coco"
  config.data.restval = True
  config.evaluate.folds = 5
  return config
