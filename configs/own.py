"""Your own images and captions, whatever their format: docs/own-data.md.

  python -m xmr.main --config=configs/own.py --config.data.dir=FOLDER --workdir=runs/own

Trains a small network from scratch on pixels and words; nothing is downloaded. Two CPU cores take
two minutes for 300 images. Batch size, length and learning rate suit the number of captions
(xmr/recipe.py) unless they are given. From scratch needs tens of thousands of pairs: with fewer,
take features of a pretrained network, or another run of yours with --config.init=RUN.

Variants:
  features    image features that python -m xmr.extract wrote into FOLDER/features, and words
  clip        CLIP or SigLIP that python -m xmr.import_run made a run of: --config.init=runs/clip
"""

from configs import pretrained_flickr
from xmr.config import base_config
from xmr.errors import choice


def get_config(variant=""):
  """Returns the config of a variant: "", "features" or "clip"."""
  choice("variant", variant, ("", "features", "clip"))
  if variant == "clip":
    return pretrained_flickr.get_config("own")
  config = base_config()
  config.recipe = "by_size"
  config.batch_size = 0
  config.epochs = 0.0
  config.evaluate.epochs = 0.0
  config.optimizer.learning_rate = 0.0
  config.optimizer.schedule = "cosine"
  config.data.name = "own"
  config.data.max_length = 64
  config.vocabulary.min_count = 2
  config.vocabulary.extend = True
  config.loss.name = "info_nce"
  config.model.dim = 128
  config.model.text.word_dim = 64
  config.model.text.dropout = 0.2
  config.model.text.readout = "mean"
  if variant == "features":
    config.data.image = "features"
    config.data.image_features = "features/features.npy"
    config.model.image.name = "linear"
    config.model.dim = 512
    return config
  config.data.image_size = 64
  config.data.resize = 64
  # Captions speak of the whole image: small crops would cut off what they name.
  config.data.min_area = 0.5
  config.model.image.name = "convnet"
  return config
