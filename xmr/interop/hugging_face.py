"""CLIP, SigLIP and DINOv2 in Hugging Face folders: the network that their files describe, and its
weights in our layout.
"""

import dataclasses
import math
import pathlib

import jax
import numpy as np

from xmr.errors import UserError
from xmr.interop.folders import read_json, read_weights
from xmr.interop.subwords import read_subwords
from xmr.interop.torch_files import compare, refuse, template
from xmr.interop.tower_names import ACTIVATIONS, hugging_face_name, unpacked
from xmr.models.text_tower import TextTower
from xmr.models.vit import ImageTower

INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
# Defaults of the fields that a config.json leaves out.
VISION = {
  "clip": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
  | {"num_attention_heads": 12, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu"}
  | {"layer_norm_eps": 1e-5},
  "siglip": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
  | {"num_attention_heads": 12, "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6}
  | {"hidden_act": "gelu_pytorch_tanh"},
  "dinov2": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
  | {"image_size": 224, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
}
TEXT = {
  "clip": {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048}
  | {"num_hidden_layers": 12, "num_attention_heads": 8, "max_position_embeddings": 77}
  | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
  "siglip": {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072}
  | {"num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 64}
  | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}
KINDS = {
  "clip": "clip",
  "siglip": "siglip",
  "dinov2": "dinov2",
  "dinov2_with_registers": "dinov2",
}


@dataclasses.dataclass(frozen=True)
class Towers:
  """What a folder of towers holds.

  Attributes:
    kind: "clip", "siglip" or "dinov2".
    image: fields of ImageTower.  text: fields of TextTower; None for an image tower alone.
    data: {"image_size", "resize", "fit", "interpolation"}: how images are resized and cropped.
    tokenizer: content of Subwords, or None.
    params: {"image_encoder": nested, "text_encoder": nested}, NumPy float32.
    temperature, bias: learned scalars of its loss, logits = cosine / temperature + bias; None where
      the loss has none.
    source: path of the weights.
  """

  kind: str
  image: dict
  text: dict | None
  data: dict
  tokenizer: dict | None
  params: dict
  temperature: float | None
  bias: float | None
  source: pathlib.Path


def sizes(config, defaults, *, where):
  """The fields that image and text towers share, from a section of config.json.

  Raises:
    UserError: a field of another type, a size that is not a positive integer, heads that do not
      divide the width, or an unknown activation.
  """
  found = defaults | {key: value for key, value in config.items() if value is not None}
  for field, default in defaults.items():
    if isinstance(default, int) and (type(found[field]) is not int or found[field] < 1):
      raise UserError(f"{where}: {field} is {found[field]!r}; expected a positive integer")
  if found["hidden_size"] % found["num_attention_heads"]:
    raise UserError(
      f"{where}: hidden_size {found['hidden_size']} is no multiple of num_attention_heads "
      f"{found['num_attention_heads']}"
    )
  if str(found["hidden_act"]) not in ACTIVATIONS:
    raise UserError(
      f"{where}: hidden_act is {found['hidden_act']!r}; expected one of {', '.join(ACTIVATIONS)}"
    )
  if type(found["layer_norm_eps"]) not in (int, float):
    raise UserError(f"{where}: layer_norm_eps is {found['layer_norm_eps']!r}; expected a number")
  return found, {
    "width": found["hidden_size"],
    "layers": found["num_hidden_layers"],
    "heads": found["num_attention_heads"],
    "gelu": ACTIVATIONS[found["hidden_act"]],
    "epsilon": float(found["layer_norm_eps"]),
  }


def image_fields(config, kind, *, where):
  """Fields of ImageTower, except `dim`, mean and std, from config.json's vision section."""
  found, fields = sizes(config, VISION[kind], where=where)
  for field in ("mlp_ratio", "intermediate_size", "num_register_tokens"):
    if type(found.get(field, 0)) not in (int, float) or found.get(field, 0) < 0:
      raise UserError(f"{where}: {field} is {found[field]!r}; expected a number")
  if found["image_size"] < found["patch_size"]:
    raise UserError(
      f"{where}: image_size is {found['image_size']}; expected at least one patch of patch_size "
      f"{found['patch_size']}"
    )
  if found.get("num_channels", 3) != 3:
    raise UserError(f"{where}: num_channels is {found['num_channels']}; expected 3")
  if found.get("use_swiglu_ffn") or found.get("vision_use_head") is False:
    which = "use_swiglu_ffn" if found.get("use_swiglu_ffn") else "vision_use_head"
    raise UserError(f"{where}: {which} is {found[which]}; expected {not found[which]}")
  ratio = found.get("mlp_ratio", 4)
  return fields | {
    "kind": kind,
    "mlp_width": found.get("intermediate_size") or int(fields["width"] * ratio),
    "patch": found["patch_size"],
    "grid": found["image_size"] // found["patch_size"],
    "rest": found["image_size"] % found["patch_size"],
    "registers": found.get("num_register_tokens", 0),
    "antialias": found.get("model_type") == "dinov2_with_registers",
    "project": kind == "clip",
    "bias": False,
  }


def text_fields(config, kind, *, where):
  """Fields of TextTower, except `dim`, from config.json's text section."""
  found, fields = sizes(config, TEXT[kind], where=where)
  return fields | {
    "kind": kind,
    "mlp_width": found["intermediate_size"],
    "vocabulary_size": found["vocab_size"],
    "positions": found["max_position_embeddings"],
    "bias": kind == "siglip",
  }


def preprocessing(folder, image_size):
  """How the folder's processor resizes, crops and scales images.

  Returns:
    data: {"image_size", "resize", "fit", "interpolation"}.  scale: {"mean", "std"}.
  Raises:
    UserError: neither file of it, or a step that we do not support.
  """
  # transformers 5 saves a processor as a part of processor_config.json, and reads that part first.
  path = pathlib.Path(folder) / "processor_config.json"
  found = read_json(path).get("image_processor") if path.is_file() else None
  if not isinstance(found, dict):
    path = path.with_name("preprocessor_config.json")
    found = read_json(path)

  def side(value, name):
    value = value if isinstance(value, dict) else {"shortest_edge": value}
    height = value.get("shortest_edge", value.get("height"))
    if type(height) is not int or value.get("width", height) != height or height < 1:
      raise UserError(f"{path}: {name} is {value}; expected one length for both sides")
    return height, "height" in value

  resize, stretched = side(found.get("size", image_size), "size")
  cropped = found.get("do_center_crop", False)
  crop = side(found.get("crop_size"), "crop_size")[0] if cropped else resize
  if not cropped and not stretched:
    raise UserError(f"{path}: resizes to a shorter side without a crop; expected squares")
  if stretched and cropped:
    raise UserError(f"{path}: stretches to {resize} and crops {crop}; expected one of the two")
  for step in ("do_resize", "do_rescale", "do_normalize"):
    if found.get(step, True) is not True:
      raise UserError(f"{path}: {step} is {found[step]}; expected true")
  if found.get("resample", 3) not in tuple(INTERPOLATIONS):
    known = ", ".join(f"{number} ({name})" for number, name in INTERPOLATIONS.items())
    raise UserError(f"{path}: resample is {found['resample']}; expected one of {known}")
  factor = found.get("rescale_factor", 1 / 255)
  if type(factor) is not float or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
    raise UserError(f"{path}: rescale_factor is {factor}; expected 1/255")
  scale = {}
  for name in ("mean", "std"):
    value = found.get(f"image_{name}")
    if not isinstance(value, list) or [type(x) in (int, float) for x in value] != [True] * 3:
      raise UserError(f"{path}: image_{name} is {value}; expected three numbers")
    scale[name] = tuple(map(float, value))
  return {
    "image_size": crop,
    "resize": resize,
    "fit": "stretch" if stretched else "crop_floor",
    "interpolation": INTERPOLATIONS[found.get("resample", 3)],
  }, scale


def section(config, side, *, where):
  """`config.json`'s part on one tower: text_config_dict, as early files have it, or text_config."""
  for name in (f"{side}_config_dict", f"{side}_config"):
    if not isinstance(config.get(name) or {}, dict):
      raise UserError(f"{where}: {name} is a {type(config[name]).__name__}; expected an object")
  return config.get(f"{side}_config_dict") or config.get(f"{side}_config") or {}


def check_patch(fields, image_size, *, where):
  """Raises UserError where the patch does not divide the image size.

  The size of pretraining is accepted either way: its border was cut off then too.
  """
  patch = fields["patch"]
  if image_size % patch and image_size != fields["grid"] * patch + fields["rest"]:
    raise UserError(
      f"{where}: images of {image_size} pixels, which patches of {patch} do not divide; expected a "
      "multiple"
    )


def load(folder):
  """Reads a Hugging Face folder of CLIP, SigLIP or DINOv2; see Towers.

  Raises:
    UserError: a file that is missing, broken, a pointer or of another model; an architecture that
      we do not have; or missing, extra or misshapen tensors, all of which are named.
  """
  folder = pathlib.Path(folder)
  path = folder / "config.json"
  config = read_json(path)
  model_type = config.get("model_type")
  if not isinstance(model_type, str) or model_type not in KINDS:
    also = " (NaFlex)" if model_type == "siglip2" else ""
    raise UserError(
      f"{path}: model_type is {model_type!r}{also}; expected one of {', '.join(KINDS)}; bert and "
      "mpnet are texts alone, which python -m xmr.models.convert takes"
    )
  kind = KINDS[model_type]
  vision = config if kind == "dinov2" else section(config, "vision", where=path)
  image = image_fields(vision, kind, where=path)
  data, scale = preprocessing(folder, image["grid"] * image["patch"] + image["rest"])
  check_patch(image, data["image_size"], where=folder / "preprocessor_config.json")
  text = tokenizer = None
  if kind == "dinov2":
    dim = image["width"]
  else:
    words = section(config, "text", where=path)
    text = text_fields(words, kind, where=path)
    dim = config.get("projection_dim", 512)
    if kind == "siglip":
      dim = words.get("projection_size", text["width"])
    if type(dim) is not int or dim < 1:
      raise UserError(f"{path}: the projection has {dim!r} units; expected a positive integer")
    text |= {"dim": dim}
    tokenizer = read_subwords(
      folder,
      size=text["vocabulary_size"],
      context=text["positions"],
      fill=kind == "siglip",
      end=kind == "clip",
    )
    if kind == "siglip":
      text["pad"] = tokenizer["pad"]
    else:
      tokenizer["end"] = end_of(words, tokenizer, where=path)
  image |= {"dim": dim, **scale}
  tensors, source = read_weights(folder)
  if vision.get("qkv_bias") is False:
    tensors = without_bias(tensors, image["layers"])
  return Towers(
    kind=kind,
    image=image,
    text=text,
    data=data,
    tokenizer=tokenizer,
    source=source,
    **variables(unpacked(tensors), kind, image, text, data["image_size"], source=source),
  )


def end_of(config, tokenizer, *, where):
  """The end-of-text token of CLIP, as Subwords takes it: an id, or "highest".

  Configs from before 2023 say 2 whatever the id is; transformers then takes the highest id of a
  text, and so do we.

  Raises:
    UserError: the tokenizer ends texts with another id than config.json says.
  """
  named = config.get("eos_token_id")
  if named == 2:
    return "highest"
  if named is not None and named != tokenizer["end"]:
    raise UserError(
      f"{where}: text_config.eos_token_id is {named}, but tokenizer.json ends texts with "
      f"{tokenizer['end']}; they are of two models"
    )
  return tokenizer["end"]


def without_bias(tensors, layers):
  """Adds zero biases to a DINOv2 whose queries, keys and values have none."""
  result = dict(tensors)
  for i in range(layers):
    for part in ("query", "key", "value"):
      name = f"encoder.layer.{i}.attention.attention.{part}"
      if f"{name}.weight" in tensors:
        result[f"{name}.bias"] = np.zeros(len(tensors[f"{name}.weight"]), np.float32)
  return result


def variables(tensors, kind, image, text, image_size, *, source):
  """Params of both towers and the loss's scalars, from tensors under Hugging Face's names.

  Returns:
    {"params", "temperature", "bias"}, see Towers.
  """
  if not image["project"] and image["dim"] != image["width"]:
    raise UserError(
      f"{source.parent}: its config gives images {image['width']} numbers (hidden_size of the "
      f"image tower, which has no projection) and texts {image['dim']} (projection_size); expected "
      "as many"
    )
  if kind == "dinov2":
    tensors = {name.removeprefix("dinov2."): value for name, value in tensors.items()}
  scale, bias = tensors.pop("logit_scale", None), tensors.pop("logit_bias", None)
  shapes, sides = {}, {"image_encoder": "image"}
  pixels = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.uint8)
  shapes["image_encoder"] = template(ImageTower(**image), pixels)["params"]
  if text:
    sides["text_encoder"] = "text"
    words = jax.ShapeDtypeStruct((1, text["positions"]), np.int32)
    lengths = jax.ShapeDtypeStruct((1,), np.int32)
    shapes["text_encoder"] = template(TextTower(**text), words, lengths)["params"]
  found, problems = compare(
    {"params": shapes},
    tensors,
    name=lambda path: hugging_face_name(path[1:], side=sides[path[0]], kind=kind),
    ignored=(
      "embeddings.mask_token",
      "text_model.embeddings.position_ids",
      "vision_model.embeddings.position_ids",
      "classifier.",
    ),
  )
  if problems:
    refuse(problems, source=source, kind=kind)
  return {
    "params": found["params"],
    "temperature": None if scale is None else float(np.exp(-np.ravel(scale)[0])),
    "bias": None if bias is None else float(np.ravel(bias)[0]),
  }
