"""Towers of open_clip folders: the same network under open_clip's names, and folders that do not
fit.
"""

import json
import shutil

import jax
import numpy as np
import pytest
import torch_reference as reference
from paths import GOLDEN

from xmr.errors import UserError
from xmr.interop import hugging_face, open_clip
from xmr.models.text_tower import TextTower
from xmr.models.vit import ImageTower

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


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  ["ViT-B-32", "ViT-L-14-336-quickgelu", "ViT-B-16-SigLIP"]
  + ["ViT-B-32-SigLIP2-256", "ViT-SO400M-14-SigLIP-384"],
)
def test_open_clip_itself_gives_the_same_embeddings(name, tmp_path, monkeypatch):
  """Its own configs, two blocks of them and narrow texts, with random weights."""
  reference.vision()
  torch = pytest.importorskip("torch")
  library = pytest.importorskip("open_clip")
  import safetensors.torch
  import timm

  config = json.loads(json.dumps(library.get_model_config(name)))
  siglip, vision, text = "SigLIP" in name, config["vision_cfg"], config["text_cfg"]
  kind = "siglip" if siglip else "clip"
  text |= {"width": 48, "heads": 3, "layers": 2, "vocab_size": 391 if siglip else 390}
  if siglip:
    width = config["embed_dim"] = open_clip.SIGLIP_SIZES[vision["timm_model_name"].split("_")[1]][0]
    sizes = {key: (x[0], 2, *x[2:]) for key, x in open_clip.SIGLIP_SIZES.items()}
    monkeypatch.setattr(open_clip, "SIGLIP_SIZES", sizes)
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: create(*a, **k | {"depth": 2}))
    assert width > 700
  else:
    vision |= {"layers": 2, "width": 128}
  torch.manual_seed(0)
  build = library.CustomTextCLIP if siglip else library.CLIP
  rest = {key: x for key, x in config.items() if key not in ("custom_text",)}
  model = build(**json.loads(json.dumps(rest))).eval()
  with torch.no_grad():
    for x in model.parameters():
      x.add_(0.1 * torch.randn_like(x) * (min(1.0, float(x.std()) or 1.0) if x.numel() > 1 else 1))
  tensors = {key: x.contiguous() for key, x in model.state_dict().items()}
  safetensors.torch.save_file(tensors, tmp_path / "open_clip_model.safetensors")
  content = {"model_cfg": config, "preprocess_cfg": {}}
  (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
  for file in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(TOWERS / kind / file, tmp_path)
  towers = open_clip.load(tmp_path)
  size, length = vision["image_size"], text.get("context_length", 77)
  pixels = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
  ids = np.random.default_rng(1).integers(2, 380, (3, length)).astype(np.int32)
  lengths = np.array([5, length, 9], np.int32)
  if not siglip:
    # open_clip takes the highest id for the end of a text.
    for row, end in zip(ids, lengths, strict=True):
      row[end - 1 :] = [389] + [0] * (length - end)
  with torch.no_grad():
    image = model.encode_image(torch.from_numpy(pixels)).numpy()
    words = model.encode_text(torch.from_numpy(ids).long()).numpy()
  tower = ImageTower(**towers.image)
  bound = tower.bind({"params": towers.params["image_encoder"]})
  pooled = bound.backbone(pixels.transpose(0, 2, 3, 1))[0]
  found = bound.projection(pooled) if tower.project else pooled
  assert np.abs(np.asarray(found) - image).max() < 1e-5 * np.ptp(image)
  tower = TextTower(**towers.text | {"normalize": "none"})
  found = tower.apply({"params": towers.params["text_encoder"]}, ids, lengths)
  assert np.abs(np.asarray(found) - words).max() < 1e-5 * np.ptp(words)


def test_the_end_of_a_text_that_config_json_does_not_have_is_refused(tmp_path):
  for file in (TOWERS / "clip").iterdir():
    shutil.copy(file, tmp_path)
  config = json.loads((tmp_path / "config.json").read_text())
  config["text_config"]["eos_token_id"] = 49407
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(
    UserError, match="eos_token_id is 49407, but tokenizer.json ends texts with 1"
  ):
    hugging_face.load(tmp_path)


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
    (
      changed("text_cfg", tokenizer_kwargs={"clean": "lower"}),
      "tokenizer_kwargs is {'clean': 'lower",
    ),
    (changed("vision_cfg", image_size=[48, 64]), "image_size is [48, 64]; expected one length"),
    (
      changed("vision_cfg", mlp_ratio="4"),
      "vision_cfg.mlp_ratio is '4'; expected a positive number",
    ),
    (changed("vision_cfg", norm_kwargs={"eps": []}), "vision_cfg.norm_kwargs.eps is []; expected"),
    (changed("vision_cfg", head_width=999), "vision_cfg.width is 48, no multiple of its 0 heads"),
    (changed("text_cfg", act_kwargs="tanh"), "text_cfg.act_kwargs is 'tanh'; expected an object"),
    (changed("text_cfg", heads=5), "text_cfg.width is 48, no multiple of its 5 heads"),
    (changed("preprocess_cfg", mean=None), "preprocess_cfg.mean is None; expected three numbers"),
    (changed("preprocess_cfg", size="x"), "preprocess_cfg.size is x; expected one length"),
    (
      changed("preprocess_cfg", resize_mode=[]),
      "preprocess_cfg.resize_mode is []; expected a word",
    ),
    (changed("vision_cfg", layers=3), "missing vision_model.encoder.layers.2."),
    ({"model_cfg": {}}, "open_clip_config.json: has no model_cfg with vision_cfg and text_cfg"),
  ],
)
def test_what_does_not_fit_is_said_in_one_line(folder, config, words):
  (folder / "open_clip_config.json").write_text(json.dumps(config))
  with pytest.raises(UserError) as error:
    open_clip.load(folder)
  assert words in str(error.value) and "\n" not in str(error.value)
