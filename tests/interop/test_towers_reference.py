"""CLIP, SigLIP and DINOv2 against transformers itself: random networks that were saved, converted
and encoded, and the gradient of a step; minutes, as PyTorch is imported.
"""

import jax
import numpy as np
import pytest
import torch_reference as reference
from paths import GOLDEN

from xmr.data.subwords import Subwords
from xmr.interop import hugging_face
from xmr.models.text_tower import TextTower
from xmr.models.vit import ImageTower

pytestmark = pytest.mark.slow
TEXTS = ["a man rides a bicycle", "", "a dog " * 20, "naïve café ☕ 🙂", "two red kites !"]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def pair(request, tmp_path_factory):
  """(PyTorch model, Towers) of fresh random weights, none at its trivial value."""
  import shutil

  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  reference.vision()
  source = GOLDEN / "towers" / request.param
  config = transformers.AutoConfig.from_pretrained(source)
  torch.manual_seed(3)
  model = transformers.AutoModel.from_config(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  folder = tmp_path_factory.mktemp(request.param)
  model.save_pretrained(folder)
  for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
    shutil.copy(source / name, folder)
  return model, hugging_face.load(folder)


def relative(found, want):
  return np.abs(np.asarray(found) - want).max() / np.ptp(want)


def embeddings(found):
  """Features of get_image_features and get_text_features, whichever form they are returned in."""
  return found if hasattr(found, "detach") else found.pooler_output


def test_pixels_and_sentences_give_the_same_embeddings(pair):
  import torch

  model, towers = pair
  pixels = np.random.default_rng(0).normal(size=(3, 3, 48, 48)).astype(np.float32)
  ids, lengths, cut = Subwords(towers.tokenizer).encode_texts(TEXTS)
  assert cut >= 1
  with torch.no_grad():
    image = embeddings(model.get_image_features(pixel_values=torch.from_numpy(pixels))).numpy()
    text = embeddings(model.get_text_features(input_ids=torch.from_numpy(ids).long())).numpy()
  encoder = ImageTower(**towers.image).bind({"params": towers.params["image_encoder"]})
  pooled, _ = encoder.backbone(pixels.transpose(0, 2, 3, 1))
  found = encoder.projection(pooled) if towers.image["project"] else pooled
  assert relative(found, image) < 1e-5
  tower = TextTower(**towers.text | {"normalize": "none"})
  found = tower.apply({"params": towers.params["text_encoder"]}, ids, lengths)
  assert relative(found, text) < 1e-5


def test_the_gradient_of_a_step_is_pytorchs(pair):
  import torch

  model, towers = pair
  ids, lengths, _ = Subwords(towers.tokenizer).encode_texts(TEXTS)
  weights = np.random.default_rng(1).normal(size=(len(TEXTS), towers.text["dim"]))
  weights = weights.astype(np.float32)
  model.zero_grad()
  found = embeddings(model.get_text_features(input_ids=torch.from_numpy(ids).long()))
  (found * torch.from_numpy(weights)).sum().backward()
  tower = TextTower(**towers.text | {"normalize": "none"})
  gradient = jax.grad(
    lambda params: (tower.apply({"params": params}, ids, lengths) * weights).sum()
  )(towers.params["text_encoder"])
  block = gradient["backbone"]["layer0"]
  theirs = dict(model.named_parameters())
  for ours, name in (
    (block["mlp"]["up"]["kernel"], "text_model.encoder.layers.0.mlp.fc1.weight"),
    (block["attention"]["value"]["kernel"], "text_model.encoder.layers.0.self_attn.v_proj.weight"),
    (block["norm1"]["scale"], "text_model.encoder.layers.0.layer_norm1.weight"),
  ):
    want = theirs[name].grad.numpy()
    assert relative(ours, want.T if want.ndim == 2 else want) < 1e-4, name
