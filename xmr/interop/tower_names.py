"""Hugging Face's name of each parameter of our towers."""

import re

import numpy as np

# transformers' names of activations, and ours.
ACTIVATIONS = {
  "quick_gelu": "quick",
  "gelu": "exact",
  "gelu_python": "exact",
  "gelu_pytorch_tanh": "tanh",
  "gelu_new": "tanh",
  "gelu_fast": "tanh",
  "relu": "relu",
}
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
BLOCK = {
  "norm1": "layer_norm1",
  "norm2": "layer_norm2",
  "attention.query": "self_attn.q_proj",
  "attention.key": "self_attn.k_proj",
  "attention.value": "self_attn.v_proj",
  "attention.output": "self_attn.out_proj",
  "mlp.up": "mlp.fc1",
  "mlp.down": "mlp.fc2",
}
POOL = {
  "pool.attention.query": "head.attention.q_proj",
  "pool.attention.key": "head.attention.k_proj",
  "pool.attention.value": "head.attention.v_proj",
  "pool.attention.output": "head.attention.out_proj",
  "pool.norm": "head.layernorm",
  "pool.mlp.up": "head.mlp.fc1",
  "pool.mlp.down": "head.mlp.fc2",
}
DINO_BLOCK = {
  "norm1": "norm1",
  "norm2": "norm2",
  "attention.query": "attention.attention.query",
  "attention.key": "attention.attention.key",
  "attention.value": "attention.attention.value",
  "attention.output": "attention.output.dense",
  "mlp.up": "mlp.fc1",
  "mlp.down": "mlp.fc2",
}
# Parameters outside the layers, by the names of their module and leaf.
WHOLE = {
  "image": {
    "class_token": "vision_model.embeddings.class_embedding",
    "positions": "vision_model.embeddings.position_embedding.weight",
    "pool.probe": "vision_model.head.probe",
  },
  "dinov2": {
    "class_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "registers": "embeddings.register_tokens",
  },
  "text": {"positions": "text_model.embeddings.position_embedding.weight"},
}
MODULES = {
  "image": {
    "patches": "vision_model.embeddings.patch_embedding",
    "pre_norm": "vision_model.pre_layrnorm",
    "norm": "vision_model.post_layernorm",
    **{ours: f"vision_model.{theirs}" for ours, theirs in POOL.items()},
  },
  "dinov2": {"patches": "embeddings.patch_embeddings.projection", "norm": "layernorm"},
  "text": {"words": "text_model.embeddings.token_embedding", "norm": "text_model.final_layer_norm"},
}
PROJECTIONS = {
  ("image", "clip"): "visual_projection",
  ("text", "clip"): "text_projection",
  ("text", "siglip"): "text_model.head",
}


def hugging_face_name(path, *, side, kind):
  """Name in a CLIPModel, SiglipModel or Dinov2Model of one of our parameters.

  Args:
    path: of modules and a leaf below the encoder: ("backbone", "layer0", "norm1", "scale").
    side: "image" or "text".  kind: "clip", "siglip" or "dinov2".
  """
  part, *modules, leaf = path
  if part == "projection":
    return f"{PROJECTIONS[side, kind]}.{LEAVES[leaf]}"
  table = "dinov2" if kind == "dinov2" else side
  if ".".join((*modules, leaf)) in WHOLE[table]:
    return WHOLE[table][".".join((*modules, leaf))]
  if not modules[0].startswith("layer"):
    return f"{MODULES[table]['.'.join(modules)]}.{LEAVES[leaf]}"
  number, inside = modules[0].removeprefix("layer"), ".".join(modules[1:])
  if table != "dinov2":
    tower = {"image": "vision_model", "text": "text_model"}[side]
    return f"{tower}.encoder.layers.{number}.{BLOCK[inside]}.{LEAVES[leaf]}"
  front = f"encoder.layer.{number}."
  if leaf in ("scale1", "scale2"):
    return f"{front}layer_{leaf}.lambda1"
  return f"{front}{DINO_BLOCK[inside]}.{LEAVES[leaf]}"


def unpacked(tensors):
  """Tensors with each packed in_proj_weight [3W, W] and in_proj_bias [3W] split into q_proj, k_proj
  and v_proj.
  """
  result = {}
  for name, value in tensors.items():
    packed = re.fullmatch(r"(.*)\.in_proj_(weight|bias)", name)
    if packed is None or len(value) % 3:
      result[name] = value
      continue
    for letter, part in zip("qkv", np.split(value, 3), strict=True):
      result[f"{packed[1]}.{letter}_proj.{packed[2]}"] = part
  return result
