"""The table of losses, one row each. A new loss needs a function and a row here.

A row names its function by its path and reads the parameters' defaults from the signature. This
module imports neither the losses nor JAX, so that a config can be built and checked without them.
"""

import dataclasses
from collections.abc import Callable, Mapping

from xmr import fields
from xmr.errors import UserError
from xmr.fields import field

# What a ring form takes: the rows of one device, and the images that they belong to.
RING_TENSORS = ("image", "text", "image_id")


@dataclasses.dataclass(frozen=True)
class Learned:
  """How a parameter is learned: what is stored and updated, and where it starts.

  `positive`: its logarithm is stored.  `at_least`: no update takes the value below.  `start`: its
  value at step 0, which comes from the config and not from a row.
  """

  positive: bool = False
  at_least: float | None = None
  start: float = 0.0


@dataclasses.dataclass(frozen=True)
class Loss:
  """A loss: the paths of function and ring form, its tensors, the values that parameters may take,
  and which parameters can be learned. `gathered`: the path of a form over devices that has no ring.
  `chosen`: whether its mined negatives may be `xmr.ops.chosen.Chosen`, which sends less.

  `tensors` are names of what a training step has: image, text [B, D], match [B, B], image_id [B];
  image_negative, text_negative [B, D], image_found, text_found, same_pair [B] of mined pairs;
  image_mask, text_mask [B, L] of tokens that do not bring their own. A dict is {argument: tensor}
  where the function's argument has another name. `tokens`: image and text are always Tokens
  [B, L, D]; otherwise they are Tokens where `kind` is one of tokens.
  """

  function: str | Callable
  tensors: tuple[str, ...] | Mapping[str, str]
  limits: Mapping[str, fields.Field] = dataclasses.field(default_factory=dict)
  ring: str | Callable | None = None
  gathered: str | Callable | None = None
  learn: Mapping[str, Learned] = dataclasses.field(default_factory=dict)
  chosen: bool = False
  tokens: bool = False

  @property
  def routes(self):
    """{argument of the function: name of the tensor}."""
    return routes(self.tensors)

  @property
  def parameters(self):
    """{parameter: Field}, with the defaults of the signature."""
    found = fields.defaults(self.function)
    return {
      name: dataclasses.replace(self.limits.get(name, fields.Field()), default=value)
      for name, value in found.items()
      if name not in self.routes
    }


def routes(tensors):
  """Returns {argument: tensor} of a row's `tensors`."""
  return dict(tensors) if isinstance(tensors, Mapping) else {name: name for name in tensors}


MARGIN = field(about="of the hinge", at_least=0, at_most=1e4)
WEIGHT = field(about="of the constraints", at_least=0, at_most=1e6)
REDUCE = field(about="over the batch", choices="xmr.losses.shapes.REDUCTIONS")
KIND = field(about="similarity", choices="xmr.ops.similarity.KINDS")
HINGES = {"margin": MARGIN, "reduce": REDUCE, "kind": KIND}
TEMPERATURE = field(about="divides the scores", above=0, at_most=1e4)
BIAS = field(about="added to the scores", at_least=-1e4, at_most=1e4)
PAIRS = ("scores", "positive")
TOKENS = fields.constant("xmr.ops.alignment.NAMES")
BATCH = ("image", "text", "match")
FOUND = ("image_found", "text_found")
MINED = ("image", "text", "image_negative", "text_negative", *FOUND)

LOSSES = {
  "sum_of_hinges": Loss(
    "xmr.losses.triplet.sum_of_hinges",
    BATCH,
    HINGES,
    ring="xmr.losses.ring.ring_sum_of_hinges",
  ),
  "max_of_hinges": Loss(
    "xmr.losses.triplet.max_of_hinges",
    BATCH,
    HINGES,
    ring="xmr.losses.ring.ring_max_of_hinges",
  ),
  "imc": Loss(
    "xmr.losses.intra.imc",
    BATCH,
    {
      "margin": MARGIN,
      "weight": WEIGHT,
      "distance": field(about="within a modality", choices="xmr.losses.intra.DISTANCES"),
      "lower": field(about="nearest that count", at_least=0, at_most=1e4),
      "upper": field(about="farthest that count", at_least=0, at_most=1e4),
      "form": field(about="of the constraint", choices="xmr.losses.intra.FORMS"),
      "reduce": REDUCE,
      "inter": field(about="loss between the modalities", choices="xmr.losses.intra.INTER"),
    },
    ring="xmr.losses.ring.ring_imc",
  ),
  "hard_negative": Loss(
    "xmr.losses.full_hn.hard_negative", MINED, {"margin": MARGIN, "kind": KIND}, chosen=True
  ),
  "margin_hard_negative": Loss(
    "xmr.losses.full_hn.margin_hard_negative", MINED, {"kind": KIND}, chosen=True
  ),
  "full_hard_negative": Loss(
    "xmr.losses.full_hn.full_hard_negative",
    (*MINED, "same_pair"),
    {
      "margin": MARGIN,
      "intra_margin": MARGIN,
      "pair_rule": field(
        about="pairs of negatives that count", choices="xmr.losses.full_hn.PAIR_RULES"
      ),
      "kind": KIND,
    },
    chosen=True,
  ),
  "aligned_full_hard_negative": Loss(
    "xmr.losses.alignment.aligned_full_hard_negative",
    (*BATCH, "image_mask", "text_mask"),
    {
      "margin": MARGIN,
      "weight": WEIGHT,
      "diagonal": field(about="of the search", choices="xmr.losses.alignment.DIAGONALS"),
      "pair_rule": field(
        about="pairs of negatives that count", choices="xmr.losses.alignment.PAIR_RULES"
      ),
      "padding": field(about="of the tokens", choices="xmr.ops.alignment.PADDINGS"),
    },
    gathered="xmr.losses.ring.gathered_full_hard_negative",
    tokens=True,
  ),
  "pairwise_similarity": Loss(
    "xmr.losses.fine_grained.pairwise_similarity", PAIRS, {"weight": WEIGHT, "margin": MARGIN}
  ),
  "pair_cross_entropy": Loss("xmr.losses.fine_grained.pair_cross_entropy", PAIRS),
  "fine_grained_similarity": Loss(
    "xmr.losses.fine_grained.fine_grained_similarity",
    (*PAIRS, "hardness"),
    {
      "beta": field(about="influence of the hardness", at_least=0, at_most=1e4),
      "weight": WEIGHT,
      "margin": MARGIN,
      "form": field(about="of the hardness", choices="xmr.losses.fine_grained.FORMS"),
      "threshold": field(
        about="hardness from which a pair counts, in the form of that name", at_least=0, at_most=1
      ),
    },
  ),
  "info_nce": Loss(
    "xmr.losses.contrastive.info_nce",
    BATCH,
    {"temperature": TEMPERATURE, "bias": BIAS, "kind": KIND},
    ring="xmr.losses.ring.ring_info_nce",
    # CLIP keeps 1 / temperature at 100 or less.
    learn={"temperature": Learned(positive=True, at_least=0.01), "bias": Learned()},
  ),
  "sigmoid": Loss(
    "xmr.losses.contrastive.sigmoid",
    BATCH,
    {"temperature": TEMPERATURE, "bias": BIAS, "kind": KIND},
    ring="xmr.losses.ring.ring_sigmoid",
    learn={"temperature": Learned(positive=True), "bias": Learned()},
  ),
}


def row(name):
  """Returns the row of a loss; UserError for an unknown name, with the known ones."""
  if name not in LOSSES:
    raise UserError(f"loss.name is {name!r}; expected one of {', '.join(sorted(LOSSES))}")
  return LOSSES[name]


def takes_tokens(name, parameters):
  """Returns whether a loss with these parameters compares tokens and not embeddings."""
  return row(name).tokens or parameters.get("kind") in TOKENS


def check(name, parameters):
  """Raises UserError for a parameter that a loss does not have, or a value that it may not have."""
  known = row(name).parameters
  unknown = sorted(set(parameters) - set(known))
  if unknown:
    expected = f"some of {', '.join(known)}" if known else "none"
    raise UserError(f"loss {name} has no parameter {', '.join(unknown)}; expected {expected}")
  for key, value in parameters.items():
    known[key].check(f"loss.{key}", value)


def learned(name, learn):
  """Returns {parameter: Learned} of the names in `learn`; UserError for what cannot be learned."""
  known = row(name).learn
  wrong = [key for key in learn if key not in known]
  if wrong:
    expected = f"some of {', '.join(known)}" if known else "none"
    raise UserError(f"loss.learn names {', '.join(map(str, wrong))}; loss {name} learns {expected}")
  return {key: known[key] for key in learn}


class Section(fields.Section):
  """`config.loss`: a name, the parameters of the loss that has it, and which of them are learned.

  Another name brings that loss's own defaults.
  """

  NAME = field("imc", "a row of xmr/losses/table.py", choices=LOSSES)
  WHERE = "loss"

  def unknown(self, key):
    return super().unknown(key).replace("has no field", "has no parameter")

  @staticmethod
  def declared(name):
    return {
      "learn": field((), "parameters that are trained from their value on, as those of the model"),
      **row(name).parameters,
    }


def section(name):
  """Returns a `config.loss` of a name, with its defaults."""
  made = Section()
  made.name = name
  return made


def parameters(section):
  """Returns {parameter: value} of `config.loss`."""
  return {key: value for key, value in section.items() if key not in ("name", "learn")}
