"""CLIP and SigLIP in open_clip folders: the network that their files describe, and its weights in
our layout.
"""

import pathlib
import re

import numpy as np

from xmr.errors import UserError
from xmr.interop.folders import OPEN_CLIP_WEIGHTS, read_json, read_weights
from xmr.interop.hugging_face import Towers, check_patch, variables
from xmr.interop.subwords import read_subwords
from xmr.interop.tower_names import unpacked

CONFIG = "open_clip_config.json"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# The fields that we support in each section; any other field describes another network.
KNOWN = {
  "vision_cfg": {"image_size", "layers", "width", "patch_size", "mlp_ratio", "head_width"}
  | {"patch_dropout", "timm_model_pretrained", "norm_kwargs", "act_kwargs"}
  | {"timm_model_name", "timm_pool", "timm_proj"},
  "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
  | {"hf_tokenizer_name", "tokenizer_kwargs", "norm_kwargs", "act_kwargs", "no_causal_mask"}
  | {"proj_bias", "pool_type", "pad_id"},
}
COUNTS = ("layers", "width", "heads", "head_width", "patch_size", "context_length", "vocab_size")
# SigLIP's sizes by their name in timm: width, layers, heads, units of the feed-forward.
SIGLIP_SIZES = {
  "base": (768, 12, 12, 3072),
  "large": (1024, 24, 16, 4096),
  "so400m": (1152, 27, 16, 4304),
  "giantopt": (1536, 40, 16, 6144),
}
# Models for which timm uses the tanh form of GELU; it uses the exact form for the others, whatever
# big_vision trained with.
SIGLIP_TANH = r"base_patch32_siglip_|large_patch16_siglip_512|so400m_patch16_|giantopt_"
BLOCK = {
  "ln_1": "layer_norm1",
  "ln_2": "layer_norm2",
  "attn": "self_attn",
  "mlp.c_fc": "mlp.fc1",
  "mlp.c_proj": "mlp.fc2",
}
VISION = {
  "conv1": "embeddings.patch_embedding",
  "class_embedding": "embeddings.class_embedding",
  "positional_embedding": "embeddings.position_embedding.weight",
  "ln_pre": "pre_layrnorm",
  "ln_post": "post_layernorm",
}
TRUNK = {
  "patch_embed.proj": "embeddings.patch_embedding",
  "pos_embed": "embeddings.position_embedding.weight",
  "norm": "post_layernorm",
  "attn_pool.latent": "head.probe",
  "attn_pool.q": "head.attention.q_proj",
  "attn_pool.kv": "head.attention.kv_proj",
  "attn_pool.proj": "head.attention.out_proj",
  "attn_pool.norm": "head.layernorm",
  "attn_pool.mlp": "head.mlp",
}
TRUNK_BLOCK = {
  "norm1": "layer_norm1",
  "norm2": "layer_norm2",
  "attn.qkv": "self_attn.qkv",
  "attn.proj": "self_attn.out_proj",
  "mlp": "mlp",
}
TEXT = {
  "token_embedding": "embeddings.token_embedding",
  "positional_embedding": "embeddings.position_embedding.weight",
  "ln_final": "final_layer_norm",
}


def load(folder):
  """Reads an open_clip folder with a vision transformer of CLIP or of SigLIP; see
  hugging_face.Towers.

  Raises:
    UserError: a file that is missing, broken, a pointer or of another model; a network that we do
      not have; or missing, extra or misshapen tensors, all of which are named.
  """
  folder = pathlib.Path(folder)
  path = folder / CONFIG
  found = read_json(path)
  config, cut = found.get("model_cfg"), found.get("preprocess_cfg") or {}
  if (
    not isinstance(config, dict)
    or not isinstance(cut, dict)
    or not all(isinstance(config.get(part), dict) for part in KNOWN)
  ):
    raise UserError(f"{path}: has no model_cfg with vision_cfg and text_cfg, or no preprocess_cfg")
  for section, known in KNOWN.items():
    strange = [key for key, value in config[section].items() if key not in known and value]
    if strange:
      raise UserError(
        f"{path}: {section} has {', '.join(sorted(strange))}, which no tower here has; expected a "
        "plain vision transformer of CLIP or SigLIP and its text transformer"
      )
  check_types(config, cut, where=path)
  kind = "siglip" if "timm_model_name" in config["vision_cfg"] else "clip"
  image = image_fields(config, kind, where=path)
  text = text_fields(config, kind, where=path)
  data, scale = preprocessing(cut, image["grid"] * image["patch"] + image["rest"], where=path)
  check_patch(image, data["image_size"], where=path)
  tokenizer = read_subwords(
    folder,
    size=text["vocabulary_size"],
    context=text["positions"],
    fill=kind == "siglip",
    end=kind == "clip",
  )
  options = config["text_cfg"].get("tokenizer_kwargs") or {}
  if options not in ({}, {"clean": "canonicalize"}):
    raise UserError(
      f"{path}: text_cfg.tokenizer_kwargs is {options}; expected none, or clean: canonicalize"
    )
  if options:
    tokenizer["clean"] = True
  tensors, source = read_weights(folder, OPEN_CLIP_WEIGHTS)
  image |= {"dim": config["embed_dim"], **scale}
  text |= {"dim": config["embed_dim"]}
  if kind == "siglip":
    text["pad"] = tokenizer["pad"]
  return Towers(
    kind=kind,
    image=image,
    text=text,
    data=data,
    tokenizer=tokenizer,
    source=source,
    **variables(renamed(tensors), kind, image, text, data["image_size"], source=source),
  )


def check_types(config, cut, *, where):
  """Raises UserError where a field of model_cfg or preprocess_cfg, `cut`, has another type."""

  def expect(name, value, right, what):
    if not right:
      raise UserError(f"{where}: {name} is {value!r}; expected {what}")

  def number(value):
    return type(value) in (int, float) and value > 0

  def positive(value):
    return type(value) is int and value > 0

  dim = config.get("embed_dim")
  expect("embed_dim", dim, positive(dim), "a positive integer")
  for section in KNOWN:
    for name, value in config[section].items():
      full = f"{section}.{name}"
      if name in COUNTS:
        expect(full, value, positive(value), "a positive integer, as a ViT has it")
      if name == "mlp_ratio":
        expect(full, value, number(value), "a positive number")
      if name.endswith("_kwargs"):
        expect(full, value, isinstance(value or {}, dict), "an object")
    eps = (config[section].get("norm_kwargs") or {}).get("eps", 1.0)
    expect(f"{section}.norm_kwargs.eps", eps, number(eps), "a positive number")
  for name in ("mean", "std"):
    value = cut.get(name, CLIP_STD)
    right = isinstance(value, (list, tuple)) and [type(x) in (int, float) for x in value]
    right = right == [True] * 3
    expect(f"preprocess_cfg.{name}", value, right, "three numbers")
  for name in ("resize_mode", "interpolation"):
    expect(f"preprocess_cfg.{name}", cut.get(name), isinstance(cut.get(name, ""), str), "a word")


def _gelu(section, config):
  if (section.get("act_kwargs") or {}).get("approximate") == "tanh":
    return "tanh"
  return "quick" if config.get("quick_gelu") else "exact"


def _epsilon(section, otherwise):
  return float((section.get("norm_kwargs") or {}).get("eps", otherwise))


def image_fields(config, kind, *, where):
  """Fields of ImageTower, except `dim`, mean and std, from model_cfg."""
  found = config["vision_cfg"]
  if kind == "clip":
    width, layers = found.get("width", 768), found.get("layers", 12)
    heads, patch = width // found.get("head_width", 64), found.get("patch_size", 16)
    size, hidden = found.get("image_size", 224), int(width * found.get("mlp_ratio", 4))
    gelu, epsilon = _gelu(found, config), _epsilon(found, 1e-5)
  else:
    name = found["timm_model_name"]
    match = re.fullmatch(r"vit_(\w+)_patch(\d+)_siglip_(\d+)", name)
    if match is None or match[1] not in SIGLIP_SIZES or found.get("timm_pool") != "map":
      raise UserError(
        f"{where}: timm_model_name is {name!r} with timm_pool {found.get('timm_pool')!r}; expected "
        f"vit_SIZE_patchN_siglip_PIXELS of size {' or '.join(SIGLIP_SIZES)} with map"
      )
    width, layers, heads, hidden = SIGLIP_SIZES[match[1]]
    patch, size, epsilon = int(match[2]), int(match[3]), 1e-6
    gelu = "tanh" if re.search(SIGLIP_TANH, name) else "exact"
    size = found.get("image_size", size)
  if isinstance(size, list) and size and size == size[:1] * len(size):
    size = size[0]
  if type(size) is not int or size < patch:
    raise UserError(f"{where}: vision_cfg.image_size is {size}; expected one length for both sides")
  _check_heads(width, heads, "vision_cfg", where=where)
  return {
    "kind": kind,
    "width": width,
    "layers": layers,
    "heads": heads,
    "mlp_width": hidden,
    "patch": patch,
    "grid": size // patch,
    "rest": size % patch,
    "gelu": gelu,
    "epsilon": epsilon,
    "registers": 0,
    "antialias": False,
    "project": kind == "clip",
    "bias": False,
  }


def _check_heads(width, heads, section, *, where):
  if not heads or width % heads:
    raise UserError(f"{where}: {section}.width is {width}, no multiple of its {heads} heads")


def text_fields(config, kind, *, where):
  """Fields of TextTower, except `dim`, from model_cfg."""
  found = config["text_cfg"]
  causal, pool = not found.get("no_causal_mask"), found.get("pool_type", "argmax")
  if (causal, pool) != {"clip": (True, "argmax"), "siglip": (False, "last")}[kind]:
    raise UserError(
      f"{where}: text_cfg has pool_type {pool!r} and a {'causal' if causal else 'full'} mask; "
      "expected argmax and causal (CLIP) or last and full (SigLIP)"
    )
  width, heads = found.get("width", 512), found.get("heads", 8)
  _check_heads(width, heads, "text_cfg", where=where)
  return {
    "kind": kind,
    "vocabulary_size": found.get("vocab_size", 49408),
    "width": width,
    "layers": found.get("layers", 12),
    "heads": heads,
    "mlp_width": int(width * found.get("mlp_ratio", 4)),
    "positions": found.get("context_length", 77),
    "gelu": _gelu(found, config),
    "epsilon": _epsilon(found, 1e-5),
    "bias": bool(found.get("proj_bias")),
  }


def preprocessing(found, size, *, where):
  """How preprocess_cfg cuts and scales images: data and scale as hugging_face.preprocessing."""
  size = found.get("size", size)
  if isinstance(size, list) and size and size == size[:1] * len(size):
    size = size[0]
  if type(size) is not int or size < 1:
    raise UserError(f"{where}: preprocess_cfg.size is {size}; expected one length for both sides")
  fits = {"shortest": "crop", "squash": "stretch"}
  fit, method = found.get("resize_mode", "shortest"), found.get("interpolation", "bicubic")
  if fit not in fits or method not in ("bicubic", "bilinear"):
    raise UserError(
      f"{where}: preprocess_cfg has resize_mode {fit!r} and interpolation {method!r}; expected "
      "shortest or squash, and bicubic or bilinear"
    )
  data = {"image_size": size, "resize": size, "fit": fits[fit], "interpolation": method}
  scale = {"mean": CLIP_MEAN, "std": CLIP_STD}
  return data, {key: tuple(map(float, found.get(key, value))) for key, value in scale.items()}


def _renamed(name, table):
  for ours, theirs in table.items():
    if name == ours or name.startswith(ours + "."):
      return theirs + name[len(ours) :]
  return None


def _name(name):
  """Hugging Face's name of an open_clip tensor; None where we do not know the tensor."""
  block = re.fullmatch(r"(visual\.|text\.|)transformer\.resblocks\.(\d+)\.(.*)", name)
  if block:
    tower = "vision_model" if block[1] == "visual." else "text_model"
    rest = _renamed(block[3], BLOCK)
    return rest and f"{tower}.encoder.layers.{block[2]}.{rest}"
  block = re.fullmatch(r"visual\.trunk\.blocks\.(\d+)\.(.*)", name)
  if block:
    rest = _renamed(block[2], TRUNK_BLOCK)
    return rest and f"vision_model.encoder.layers.{block[1]}.{rest}"
  for prefix, tower, table in (
    ("visual.trunk.", "vision_model", TRUNK),
    ("visual.", "vision_model", VISION),
    ("text.", "text_model", TEXT),
    ("", "text_model", TEXT),
  ):
    rest = _renamed(name.removeprefix(prefix), table) if name.startswith(prefix) else None
    if rest:
      return f"{tower}.{rest}"
  return None


def renamed(tensors):
  """open_clip's tensors under Hugging Face's names and in its layout; unknown ones keep their name.

  open_clip stores projections that are bare parameters as [in, out], packed ones as [3 out, in].
  """
  result = {}
  for name, value in tensors.items():
    plain = name.removeprefix("text.")
    if plain == "attn_mask":
      continue  # A constant.
    if name == "visual.proj":
      result["visual_projection.weight"] = value.T
    elif plain == "text_projection":
      result["text_projection.weight"] = value.T
    elif plain.startswith("text_projection."):
      # SigLIP's projection is a layer with a bias.
      result[plain.replace("text_projection", "text_model.head")] = value
    else:
      found = _name(name) or name
      if ".self_attn.qkv." in found:
        found = found.replace("qkv.", "in_proj_")
      if ".attention.kv_proj." in found:
        for letter, part in zip("kv", np.split(value, 2), strict=True):
          result[found.replace("kv_proj", f"{letter}_proj")] = part
        continue
      result[found] = value
  return unpacked(result)
