"""What the TERAN configs share: regions of images, words, and alignments of both in training and in
ranking.
"""

from configs.common import flickr
from xmr.config import base_config
from xmr.errors import UserError

# Variant -> loss and its parameters.
METHODS = {
  "f_hn": ("aligned_full_hard_negative", {"diagonal": "masked"}),
  "f_hn_released": ("aligned_full_hard_negative", {"diagonal": "released", "padding": "zero"}),
  "hn": ("hard_negative", {"kind": "symmetric"}),
  "mh": ("max_of_hinges", {"kind": "MrSw"}),
}
# Margins were chosen on the validation split (docs/results.md).
MEANS = {"kind": "symmetric_mean", "margin": 0.05}
FLICKR8K = {
  "flickr8k_f_hn": (
    "full_hard_negative",
    {**MEANS, "intra_margin": MEANS["margin"], "pair_rule": "different"},
  ),
  "flickr8k_f_teran": ("aligned_full_hard_negative", {"margin": 1.0, "padding": "ignored"}),
  "flickr8k_hn": ("hard_negative", MEANS),
  "flickr8k_mh": ("max_of_hinges", MEANS),
  "flickr8k_pooled": ("max_of_hinges", {"kind": "pooled", "margin": 0.05}),
}


def get_config(variant, *, dataset, variants=()):
  """Returns the config of a method on a dataset, in the setting of the papers.

  Args:
    variant: "" (F-TERAN, diagonal masked), a key of METHODS, or one of `variants`.
    dataset: "flickr30k" or "coco".  variants: those of FLICKR8K that the file offers.
  """
  known = ("", *METHODS, *variants)
  if variant not in known:
    raise UserError(
      f"variant {variant!r} is unknown; expected one of {', '.join(v or '(none)' for v in known)}"
    )
  config = base_config()
  if variant in FLICKR8K:
    return flickr8k(config, variant)
  config.data.name = dataset
  config.data.dir = f"data/{dataset}"
  regions(config, "features/image_bottom_up.npy")
  config.data.image_mask = "features/image_bottom_up_mask.npy"
  config.model.dim = 1024
  config.model.image.layers = 4
  config.model.text.name = "transformer"
  config.model.text.layers = 4
  config.model.shared_layers = 2
  config.vocabulary.glove = "glove.840B.300d.txt"
  config.batch_size = 40
  config.epochs = 30.0
  config.optimizer.learning_rate = 1e-5
  config.optimizer.decay_epochs = 20.0
  method(config, *METHODS[variant or "f_hn"])
  config.similarity = config.loss.kind if variant in ("hn", "mh") else "symmetric"
  return config


def method(config, name, parameters):
  """Sets the loss and its parameters."""
  config.loss.name = name
  for key, value in parameters.items():
    config.loss[key] = value


def regions(config, path):
  """Puts regions of a file in place of pixels."""
  config.data.image = "regions"
  config.data.image_features = path
  config.model.image.name = "regions"


def flickr8k(config, variant):
  """Returns the config of a variant on 16 regions an image and the words of Flickr8k."""
  flickr.flickr8k(config)
  regions(config, "features/image_regions_mobilenetv2.npy")
  # Words without their context, and few numbers: a run takes about a minute of one quiet core.
  config.model.text.name = "transformer"
  config.model.text.layers = 0
  config.model.dim = 128
  config.model.image.input_norm = True
  config.model.image.dropout = 0.1
  config.data.max_length = 24
  config.batch_size = 64
  config.optimizer.learning_rate = 5e-3
  method(config, *FLICKR8K[variant])
  config.similarity = config.loss.get("kind", "symmetric")
  config.warmup.epochs = 0.5
  config.epochs = 3.0
  return config
