"""MH on Flickr30K with the encoders of IMC: the loss of VSE++ in IMC's setting, its baseline.

  python -m xmr.main --config=configs/mh_flickr.py --config.data.dir=data/flickr30k
  --workdir=runs/mh_flickr

Everything but the loss is configs/imc_flickr.py, with the same variants.

  result            i2t R@1/5/10         t2i R@1/5/10         rsum
  paper (IMC)       57.1 / 83.7 / 90.9   44.5 / 74.5 / 83.2   433.9
  ours              not run: no photographs, weights or GPU on the machine where this was written

Variants:
  frozen      the released command: the CNN is not trained
  flickr8k    image features and words on Flickr8k, minutes on a CPU; numbers in docs/results.md
  flickr8k_features  linear projections of image and sentence features on Flickr8k
"""

from configs.common import flickr


def get_config(variant=""):
  """Returns the config of a variant: "", "frozen", "flickr8k" or "flickr8k_features"."""
  return flickr.get_config("max_of_hinges", variant)
