"""IMC on Flickr30K, the setting of the paper (Chen et al., ICIP 2022).

  python -m xmr.main --config=configs/imc_flickr.py --config.data.dir=data/flickr30k
  --workdir=runs/imc_flickr

ResNet-152 on pixels, trained with the text encoder (the released command leaves it frozen,
`:frozen`; the published numbers need it trained), BiLSTM on words with 840B GloVe, 30 epochs of 128
captions. Needs a GPU, the photographs, GloVe and weights converted by `python -m xmr.models.convert
--kind=resnet152`.

  result            i2t R@1/5/10         t2i R@1/5/10         rsum
  paper             58.5 / 85.0 / 91.2   45.4 / 74.8 / 83.0   437.9
  ours              not run: no photographs, weights or GPU on the machine where this was written

Variants:
  frozen      the released command: the CNN is not trained, its BatchNorm statistics drift
  flickr8k    image features and words on Flickr8k, minutes on a CPU; numbers in docs/results.md
  flickr8k_features  linear projections of image and sentence features on Flickr8k
"""

from configs.common import flickr


def get_config(variant=""):
  """Returns the config of a variant: "", "frozen", "flickr8k" or "flickr8k_features"."""
  return flickr.get_config("imc", variant)
