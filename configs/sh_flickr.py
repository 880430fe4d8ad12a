"""SH on Flickr30K with the encoders of IMC: the loss of VSE0 in IMC's setting, its baseline.

  python -m xmr.main --config=configs/sh_flickr.py --config.data.dir=data/flickr30k
  --workdir=runs/sh_flickr

Everything but the loss is configs/imc_flickr.py, with the same variants.

Variants:
  frozen      the released command: the CNN is not trained
  flickr8k    image features and words on Flickr8k, minutes on a CPU
  flickr8k_features  linear projections of image and sentence features on Flickr8k
"""

from configs.common import flickr


def get_config(variant=""):
  """Returns the config of a variant: "", "frozen", "flickr8k" or "flickr8k_features"."""
  return flickr.get_config("sum_of_hinges", variant)
