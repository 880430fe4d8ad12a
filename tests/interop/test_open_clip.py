"""Towers of open_clip folders: the same network under open_clip's names, and folders that do not
fit.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from paths import GOLDEN

from xmr.errors import UserError
from xmr.interop import hugging_face, open_clip

TOWERS = GOLDEN / "towers"
BLOCK = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"} | {
  "mlp.fc1": "mlp.c_fc",
  "mlp.fc2": "mlp.c_proj",
}


def as_open_clip(tensors):
  """Hugging Face's CLIP tensors as open_clip keeps them: packed and transposed."""
  result = {"logit_scale": tensors["logit_scale"], "attn_mask": np.zeros((16, 16), np.float32)}
  result["visual.proj"] = np.ascontiguousarray(tensors["visual_projection.weight"].T)
  result["text_projection"] = np.ascontiguousarray(tensors["text_projection.weight"].T)
  for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
    for layer in range(2):
      for ours, theirs in BLOCK.items():
        for leaf in ("weight", "bias"):
          name = f"{prefix}transformer.resblocks.{layer}.{theirs}.{leaf}"
          result[name] = tensors[f"{tower}.encoder.layers.{layer}.{ours}.{leaf}"]
      for leaf in ("weight", "bias"):
        result[f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{leaf}"] = np.concatenate(
          [tensors[f"{tower}.encoder.layers.{layer}.self_attn.{x}_proj.{leaf}"] for x in "qkv"]
        )
  vision, text = "vision_model.", "text_model."
  result["visual.conv1.weight"] = tensors[f"{vision}embeddings.patch_embedding.weight"]
  result["visual.class_embedding"] = tensors[f"{vision}embeddings.class_embedding"]
  result["visual.positional_embedding"] = tensors[f"{vision}embeddings.position_embedding.weight"]
  result["token_embedding.weight"] = tensors[f"{text}embeddings.token_embedding.weight"]
  result["positional_embedding"] = tensors[f"{text}embeddings.position_embedding.weight"]
  for leaf in ("weight", "bias"):
    result[f"visual.ln_pre.{leaf}"] = tensors[f"{vision}pre_layrnorm.{leaf}"]
    result[f"visual.ln_post.{leaf}"] = tensors[f"{vision}post_layernorm.{leaf}"]
    result[f"ln_final.{leaf}"] = tensors[f"{text}final_layer_norm.{leaf}"]
  return result


CONFIG = {
  "model_cfg": {
    "embed_dim": 40,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 48, "patch_size": 16}
    | {"head_width": 16, "mlp_ratio": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 390, "width": 48, "heads": 3, "layers": 2}
    | {"mlp_ratio": 2},
  },
  "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25], "interpolation": "bicubic"},
}


@pytest.fixture
def folder(tmp_path):
  """The golden CLIP as open_clip would save it."""
  import safetensors.numpy

  tensors = safetensors.numpy.load_file(TOWERS / "clip/model.safetensors")
  safetensors.numpy.save_file(as_open_clip(tensors), tmp_path / "open_clip_model.safetensors")
  for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(TOWERS / "clip" / name, tmp_path)
  (tmp_path / "open_clip_config.json").write_text(json.dumps(CONFIG))
  return tmp_path


def test_packed_and_transposed_weights_are_the_same_towers(folder):
  found, want = open_clip.load(folder), hugging_face.load(TOWERS / "clip")
  jax.tree.map(np.testing.assert_array_equal, found.params, want.params)
  assert found.temperature == want.temperature and found.tokenizer == want.tokenizer
  assert found.text == want.text
  scale = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}
  assert want.image | scale == found.image
  assert found.data == {"image_size": 48, "resize": 48, "fit": "crop", "interpolation": "bicubic"}


def test_a_pytorch_file_is_read_as_well(folder):
  torch = pytest.importorskip("torch")
  import safetensors.numpy

  path = folder / "open_clip_model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  want = open_clip.load(folder)
  state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
  torch.save(state, folder / "open_clip_pytorch_model.bin")
  path.unlink()
  jax.tree.map(np.testing.assert_array_equal, open_clip.load(folder).params, want.params)


def changed(section, **changes):
  config = json.loads(json.dumps(CONFIG))
  (config["model_cfg"][section] if section in config["model_cfg"] else config[section]).update(
    changes
  )
  return config


@pytest.mark.parametrize(
  ("config", "words"),
  [
    (changed("vision_cfg", layers=[3, 4, 6, 3]), "vision_cfg.layers is [3, 4, 6, 3]; expected"),
    (changed("vision_cfg", attentional_pool=True), "vision_cfg has attentional_pool, which no"),
    (changed("text_cfg", hf_model_name="roberta"), "text_cfg has hf_model_name, which no tower"),
    (changed("text_cfg", pool_type="last"), "pool_type 'last' and a causal mask; expected argmax"),
    (changed("vision_cfg", timm_model_name="convnext_base"), "timm_model_name is 'convnext_base'"),
    (changed("preprocess_cfg", resize_mode="longest"), "resize_mode 'longest'"),
    (changed("vision_cfg", layers=3), "missing vision_model.encoder.layers.2."),
    ({"model_cfg": {}}, "open_clip_config.json: has no model_cfg with vision_cfg and text_cfg"),
  ],
)
def test_what_does_not_fit_is_said_in_one_line(folder, config, words):
  (folder / "open_clip_config.json").write_text(json.dumps(config))
  with pytest.raises(UserError) as error:
    open_clip.load(folder)
  assert words in str(error.value) and "\n" not in str(error.value)
