"""FG-CMIR on Chinese Wikipedia; words by jieba (the extra "chinese"). The data is not public here:
the command prints the folder that it expects.

  python -m xmr.main --config=configs/fgcmir_wiki_zh.py --config.data.dir=data/wikipedia_zh
  --workdir=runs/fgcmir_zh

VGG19 fc7 features of the images as image_fc7.npy, [pairs, 4096] in the order of the list. Not run.

Variants:
  base          the pairwise similarity loss, without labels
  table         all forms of the labels with five seeds
"""

from configs.common import fgcmir


def get_config(variant=""):
  """Returns the config of a variant."""
  config = fgcmir.get_config("wikipedia_zh", variant)
  config.data.image_features = "image_fc7.npy"
  config.pairs.image_scale = "standard"
  return config
