"""What the Full-HN configs share: linear projections of fixed features and triplets mined over the
training set.
"""

from configs.common import flickr
from xmr.config import base_config
from xmr.errors import UserError

# Variant -> loss and where its negatives come from.
METHODS = {
  "f_hn": ("full_hard_negative", "train"),
  "hn": ("hard_negative", "train"),
  "m_hn": ("margin_hard_negative", "train"),
  "random": ("hard_negative", "random"),
}


def get_config(variant, *, dataset, margin, variants=()):
  """Returns the config of a method on a dataset, in the setting of the paper.

  Args:
    variant: "" (Full-HN), a key of METHODS, "mlp" (Full-HN with small networks for projections), or
      one of `variants`.
    dataset: "flickr30k" or "coco".
    margin: of both kinds of constraint.
    variants: further ones that the file offers.
  """
  known = ("", *METHODS, "mlp", *variants)
  if variant not in known:
    raise UserError(
      f"variant {variant!r} is unknown; expected one of {', '.join(v or '(none)' for v in known)}"
    )
  config = released(base_config())
  method(config, variant if variant in METHODS else "f_hn", margin=margin)
  config.data.name = dataset
  config.data.dir = f"data/{dataset}"
  config.data.image_features = "features/image_efficientnet_v2_l.npy"
  config.data.text_features = "features/text_mpnet.npy"
  return mlp(config) if variant == "mlp" else config


def method(config, name, *, margin):
  """Sets the loss and the mining of one of METHODS, with a margin where the loss has one."""
  config.loss.name, config.mining.scope = METHODS[name]
  for parameter in ("margin", "intra_margin"):
    if parameter in config.loss:
      config.loss[parameter] = margin


def released(config):
  """Sets what the notebooks share: linear projections without bias, Adam, 30 epochs of 512
  captions, last weights.
  """
  config.batch_size = 512
  config.epochs = 30.0
  config.data.image = config.data.text = "features"
  config.data.image_features_scale = "column"
  config.model.dim = 1024
  for side in (config.model.image, config.model.text):
    side.name = "linear"
    side.bias = side.input_norm = False
  config.optimizer.learning_rate = 2e-4
  config.optimizer.eps = 1e-7
  config.optimizer.decay_once = True
  config.optimizer.clip = 0.0
  config.evaluate.select = "latest"
  config.evaluate.graded = True
  return config


def mlp(config):
  """Swaps in the notebooks' networks, with the dropout and the L2 penalty that they declare but
  never apply.
  """
  for side in (config.model.image, config.model.text):
    side.name = "mlp"
    side.bias = True
    side.activation = "tanh"
    side.dropout = 0.2
  config.optimizer.l2 = 1e-5
  return config


def flickr8k(variant, *, margin=0.2):
  """Returns the config of a method ("f_hn", "hn", "m_hn", "random") on the features of Flickr8k,
  minutes on a CPU.
  """
  config = released(flickr.flickr8k_features(base_config()))
  method(config, variant, margin=margin)
  # The hardest of all captions is often as true as the caption itself: docs/results.md.
  config.mining.scope = "random" if variant == "random" else "batch"
  config.warmup.epochs = 0.0
  config.optimizer.schedule = "step"
  # So few images overfit within 30 epochs; the last weights, as released, are some points behind.
  config.evaluate.select = "best"
  return config
