"""What the Flickr configs share: the encoders and data of VSE++ and IMC, and a Flickr8k form that a
CPU trains in minutes.
"""

from xmr.config import base_config
from xmr.errors import UserError

VARIANTS = ("", "frozen", "flickr8k", "flickr8k_features")


def get_config(loss, variant, *, variants=VARIANTS):
  """Returns the config of a loss on Flickr30K, or of a variant.

  Args:
    loss: name in xmr.losses.LOSSES.
    variant: "" (Flickr30K, the CNN is trained), "frozen" (Flickr30K, as the released command),
      "flickr8k" (image features and words) or "flickr8k_features" (image and sentence features).
    variants: those that the file offers.
  """
  if variant not in variants:
    raise UserError(
      f"variant {variant!r} is unknown; expected one of "
      f"{', '.join(v or '(none)' for v in variants)}"
    )
  config = base_config()
  config.loss.name = loss
  if variant == "flickr8k":
    return flickr8k(config)
  if variant == "flickr8k_features":
    return flickr8k_features(config)
  config.data.name = "flickr30k"
  config.data.dir = "data/flickr30k"
  config.data.workers = 4
  config.vocabulary.glove = "glove.840B.300d.txt"
  pretrained(config, "resnet152")
  if variant == "frozen":
    config.model.image.trainable = False
  return config


def pretrained(config, name):
  """Puts a pretrained backbone on pixels, as released: all of it trained, BatchNorm on batch
  statistics.
  """
  config.model.image.name = name
  config.model.image.weights = f"weights/{name}.safetensors"
  config.model.image.batch_norm = "released"


def flickr8k(config):
  """Returns the config on Flickr8k: fixed image features, a BiLSTM on words, SH before MH."""
  config.data.name = "flickr8k"
  config.data.dir = "data/flickr8k"
  config.data.image = "features"
  config.data.image_features = "features/image_mobilenetv2.npy"
  config.model.image.name = "linear"
  config.vocabulary.glove = "../glove/glove.6B.200d.subset.txt"
  config.vocabulary.glove_missing = "matched"
  config.model.dim = 384
  config.model.text.word_dim = 200
  config.model.text.readout = "mean"
  config.data.max_length = 32
  config.warmup.epochs = 2.0
  config.epochs = 8.0
  config.optimizer.learning_rate = 1e-3
  config.optimizer.schedule = "cosine"
  return config


def flickr8k_features(config):
  """Returns the config of linear projections of fixed image and sentence features on Flickr8k."""
  flickr8k(config)
  config.data.text = "features"
  config.data.text_features = "features/text_minilm.npy"
  config.model.dim = 1024
  config.model.text.name = "linear"
  config.model.text.input_norm = True
  return config
