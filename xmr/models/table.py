"""The table of encoders, one row each. Adding an encoder takes its class and a row.

A row names its class by path, and the defaults of its fields are read from the class's source: this
module imports neither the encoders nor JAX, so that a config can be built and checked without them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from xmr import fields
from xmr.errors import UserError
from xmr.fields import field

# Fields that `models.build` passes to an encoder that declares them; its section lacks them.
GIVEN = ("dim", "normalize", "dtype", "vocabulary_size", "word_vectors")


@dataclasses.dataclass(frozen=True)
class Encoder:
  """An encoder: path of its class, input, fields that its name fixes, and other defaults.

  `reads` is its input as in config.data.image or config.data.text: pixels, regions, words or
  features. `limits` are {field: Field} of fields that FIELDS does not describe. `tokens` says that
  it gives tokens as well as the pooled embedding.
  """

  path: str | type
  reads: str
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  limits: Mapping[str, fields.Field] = dataclasses.field(default_factory=dict)
  tokens: bool = False

  @property
  def fields(self):
    """{field: Field} of its section, with the defaults of its class."""
    limits = FIELDS | dict(self.limits)
    return {
      name: dataclasses.replace(
        limits.get(name, fields.Field()), default=self.defaults.get(name, value)
      )
      for name, value in fields.defaults(self.path).items()
      if name not in GIVEN and name not in self.fixed
    }


# The fields of encoders and their limits, whichever encoder has them.
FIELDS = {
  "bias": field(about="of the projection"),
  "input_norm": field(about="unit length of the feature before the projection"),
  "hidden": field(
    about="units of a layer, or per direction; 0: as released (mlp), the joint space's (words)",
    at_least=0,
    at_most=65536,
  ),
  "layers": field(about="transformer layers over the tokens", at_least=0, at_most=64),
  "heads": field(about="of a transformer layer, a divisor of the width", at_least=1, at_most=256),
  "depth": field(about="mlp: hidden layers", at_least=0, at_most=64),
  "activation": field(about="of hidden layers", choices="xmr.models.features.ACTIVATIONS"),
  "dropout": field(
    about="on word vectors (0.4 as released, 0.5 in the paper), or between mlp layers",
    at_least=0,
    below=1,
  ),
  "batch_norm": field(
    about="frozen: running statistics; released: batch statistics, drifting even when frozen",
    choices=("frozen", "released"),
  ),
  "trainable": field(about="False: the backbone is frozen"),
  "remat": field(about="recompute blocks in the backward pass to save memory"),
  "word_dim": field(about="of a word vector", at_least=1, at_most=65536),
  "readout": field(
    about="last as released, ends as in the paper", choices="xmr.models.text.READOUTS"
  ),
  "word_init": field(
    about="of words without GloVe: xavier, uniform (VSE++) or normal",
    choices="xmr.models.text.WORD_INITS",
  ),
}

TOWER_SIZE = {"at_least": 1, "at_most": 65536}
# Fields of vision and text transformers.
FIELDS |= {
  "width": field(about="of a token", **TOWER_SIZE),
  "mlp_width": field(about="units of each feed-forward", **TOWER_SIZE),
  "patch": field(about="pixels of a patch's side", at_least=1, at_most=1024),
  "grid": field(about="patches of a side that there are position embeddings for", **TOWER_SIZE),
  "rest": field(about="pixels of a side beyond the patches in training", at_least=0, at_most=1024),
  "registers": field(about="tokens beside the class token", at_least=0, at_most=1024),
  "positions": field(about="most tokens of a text", **TOWER_SIZE),
  "gelu": field(about="form of the activation", choices="xmr.models.attention.GELU"),
  "epsilon": field(about="of the norms", above=0, below=1),
  "antialias": field(about="of position embeddings for other image sizes"),
  "mean": field(about="per channel, of pixels in [0, 1]", at_least=-10, at_most=10),
  "std": field(about="per channel, of pixels in [0, 1]", above=0, at_most=10),
  "project": field(about="False: the pooled vector is the embedding, as wide as the tower"),
  "train_blocks": field(about="the last so many are trained; -1: all", at_least=-1, at_most=1024),
  "pad": field(about="id of padding", at_least=0, at_most=2**31 - 1),
  "types": field(about="bert: kinds of segment", **TOWER_SIZE),
  "buckets": field(about="mpnet: of distances", at_least=4, at_most=65536),
}

LINEAR, MLP = "xmr.models.features.Linear", "xmr.models.features.MLP"
RECURRENT = "xmr.models.text.Recurrent"
HALVES = (0.5, 0.5, 0.5)
BACKBONES = (
  *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg19"),
  *("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"),
)

IMAGE = {
  "linear": Encoder(LINEAR, "features", defaults={"input_norm": True}),
  "mlp": Encoder(MLP, "features", defaults={"input_norm": True, "dropout": 0.0}),
  "convnet": Encoder("xmr.models.image.ConvNet", "pixels"),
  **{
    name: Encoder("xmr.models.image.PretrainedEncoder", "pixels", {"arch": name})
    for name in BACKBONES
  },
  "regions": Encoder("xmr.models.tokens.Regions", "regions", tokens=True),
  "clip_vit": Encoder("xmr.models.vit.ImageTower", "pixels", {"kind": "clip"}, tokens=True),
  "siglip_vit": Encoder(
    "xmr.models.vit.ImageTower",
    "pixels",
    {"kind": "siglip"},
    {"gelu": "tanh", "epsilon": 1e-6, "mean": HALVES, "std": HALVES, "project": False},
    tokens=True,
  ),
  "dinov2": Encoder(
    "xmr.models.vit.ImageTower",
    "pixels",
    {"kind": "dinov2"},
    {"patch": 14, "grid": 37, "gelu": "exact", "epsilon": 1e-6}
    | {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    tokens=True,
  ),
}
TEXT = {
  "linear": Encoder(LINEAR, "features"),
  "mlp": Encoder(MLP, "features", defaults={"dropout": 0.4}),
  "lstm": Encoder(RECURRENT, "words", {"cell": "lstm", "bidirectional": False}, tokens=True),
  "bilstm": Encoder(RECURRENT, "words", {"cell": "lstm", "bidirectional": True}, tokens=True),
  "gru": Encoder(RECURRENT, "words", {"cell": "gru", "bidirectional": False}, tokens=True),
  "bigru": Encoder(RECURRENT, "words", {"cell": "gru", "bidirectional": True}, tokens=True),
  "transformer": Encoder("xmr.models.tokens.Words", "words", tokens=True),
  "clip_text": Encoder("xmr.models.text_tower.TextTower", "words", {"kind": "clip"}, tokens=True),
  "siglip_text": Encoder(
    "xmr.models.text_tower.TextTower",
    "words",
    {"kind": "siglip"},
    {"width": 768, "heads": 12, "mlp_width": 3072, "positions": 64}
    | {"gelu": "tanh", "epsilon": 1e-6, "bias": True},
    tokens=True,
  ),
  "bert": Encoder("xmr.models.transformer.SentenceTower", "words", {"kind": "bert"}, tokens=True),
  "mpnet": Encoder(
    "xmr.models.transformer.SentenceTower",
    "words",
    {"kind": "mpnet"},
    {"pad": 1, "width": 768},
    tokens=True,
  ),
}
TOKENS = fields.constant("xmr.ops.alignment.NAMES")
SIDES = {"image": IMAGE, "text": TEXT}
# Fields that every encoder of a side has even if its class does not declare them.
SHARED = {
  "image": {
    "weights": field("", "safetensors of the backbone, from python -m xmr.models.convert"),
    "trainable": field(True, FIELDS["trainable"].about),
  },
  "text": {
    "weights": field("", "safetensors of the backbone, from python -m xmr.models.convert"),
    "trainable": field(True, FIELDS["trainable"].about),
  },
}


def row(side, name):
  """Returns the row of an encoder; UserError for an unknown name, which lists the known ones."""
  if name not in SIDES[side]:
    known = ", ".join(SIDES[side])
    raise UserError(f"config.model.{side}.name is {name!r}; expected one of {known}")
  return SIDES[side][name]


def check_tokens(config, *, loss):
  """Raises UserError where an encoder gives no tokens and they are needed; loss: it needs them."""
  wanting = {
    f"config.loss {config.loss.name}": loss,
    f"config.similarity {config.similarity}": config.similarity in TOKENS,
    "config.model.shared_layers": config.model.shared_layers > 0,
  }
  for side, rows in SIDES.items():
    name = config.model[side].name
    for what in (what for what, wants in wanting.items() if wants and not rows[name].tokens):
      known = ", ".join(key for key, row in rows.items() if row.tokens)
      raise UserError(
        f"{what} takes tokens, but config.model.{side}.name is {name!r}, which gives none; "
        f"expected one of {known}"
      )


def check_towers(config, *, sized=True):
  """Raises UserError where a tower's patch does not divide the image size, config.evaluate.wise is
  set without config.init, or there is nothing for config.model.lora to adapt.

  The size that the tower was pretrained at is accepted either way.

  sized: False if the image size is not known yet.
  """
  if config.evaluate.wise and not config.init:
    raise UserError(
      f"config.evaluate.wise is {config.evaluate.wise}, shares of the weights beside those of "
      "config.init, which is not set"
    )
  given = config.init or config.model.image.weights or config.model.text.weights
  if config.model.lora.rank and not given:
    raise UserError(
      f"config.model.lora.rank is {config.model.lora.rank}, but all weights are fresh; expected "
      "some to adapt: config.init, config.model.image.weights or config.model.text.weights"
    )
  image, size = config.model.image, config.data.image_size
  patch = image.get("patch")
  if sized and patch and size % patch and size != image.grid * patch + image.rest:
    raise UserError(
      f"config.data.image_size is {size}; expected a multiple of config.model.image.patch, {patch}"
    )


class Section(fields.Section):
  """`config.model.image` or `.text`: the name of an encoder, and its fields.

  A new name keeps the values of the fields that both encoders have.
  """

  side = ""

  @classmethod
  def declared(cls, name):
    return SHARED[cls.side] | row(cls.side, name).fields

  def kept(self, fields):
    return {key: value for key, value in self.items() if key in fields}


class Image(Section):
  NAME = field("convnet", "a row of xmr/models/table.py", choices=IMAGE)
  WHERE = "config.model.image:"
  side = "image"


class Text(Section):
  NAME = field("bilstm", "a row of xmr/models/table.py", choices=TEXT)
  WHERE = "config.model.text:"
  side = "text"
