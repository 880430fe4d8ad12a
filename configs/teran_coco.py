"""F-TERAN on COCO: Full-HN on alignments of regions with words, as configs/teran_flickr.py.

  python -m xmr.main --config=configs/teran_coco.py --config.data.dir=data/coco
  --workdir=runs/teran_coco

features/image_bottom_up.npy is [123287, 36, 2048], rows by imgid. The restval images are trained
on; the 5K test is scored whole and as five times 1,000. No results of F-TERAN are published. Ours
were not run: these regions were not on the machine where this was written.

Variants:
  f_hn             Full-HN on alignments, no positive is a negative (also without a variant)
  f_hn_released    the same as released: the positive can be the hardest negative, padding scores 0
  hn               hinges on the hardest negatives of the batch
  mh               hinges on the hardest negatives, MrSw: TERAN itself
"""

from configs.common import teran


def get_config(variant=""):
  """Returns the config of a variant, as listed above."""
  config = teran.get_config(variant, dataset="coco")
  config.data.restval = True
  config.evaluate.folds = 5
  return config
