"""CLIP, SigLIP and DINOv2 against transformers itself: random networks that were saved, converted
and encoded, and the gradient of a step; minutes, as PyTorch is imported.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_reference as reference
from paths import GOLDEN

from xmr.data.subwords import Subwords
from xmr.interop import hugging_face
from xmr.interop.subwords import read_subwords
from xmr.models.text_tower import TextTower
from xmr.models.vit import ImageTower

pytestmark = pytest.mark.slow
TEXTS = ["a man rides a bicycle", "", "a dog " * 20, "naïve café ☕ 🙂", "two red kites !"]


# What each folder differs in from the golden one of its kind: sections of config.json, how it is
# saved.
CASES = {
  "clip": ("clip", {}, {}),
  "clip_other_sizes": (
    "clip",
    {
      "projection_dim": 24,
      "text_config": {"hidden_size": 40, "num_attention_heads": 5, "hidden_act": "relu"},
    }
    | {"vision_config": {"image_size": 50, "hidden_act": "gelu", "layer_norm_eps": 1e-3}},
    {"max_shard_size": "100KB"},
  ),
  "clip_ends_with_the_highest_id": ("clip", {"text_config": {"eos_token_id": 2}}, {}),
  "siglip": ("siglip", {}, {}),
  "siglip_half": ("siglip", {"vision_config": {"image_size": 64}}, {"dtype": "float16"}),
  "dinov2": ("dinov2", {}, {}),
  "dinov2_without_biases": ("dinov2", {"qkv_bias": False, "mlp_ratio": 3}, {}),
  "dinov2_with_registers": ("dinov2_with_registers", {"num_register_tokens": 3}, {}),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
  """(PyTorch model, Towers) of fresh random weights, none at its trivial value."""
  import shutil

  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  reference.vision()
  kind, changes, saved = CASES[request.param]
  source = GOLDEN / "towers" / kind
  content = json.loads((source / "config.json").read_text())
  for key, value in changes.items():
    content[key] = content[key] | value if isinstance(value, dict) else value
  config = transformers.AutoConfig.for_model(**content)
  torch.manual_seed(3)
  model = transformers.AutoModel.from_config(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  saved = dict(saved)
  model = model.to(getattr(torch, saved.pop("dtype", "float32")))
  folder = tmp_path_factory.mktemp(request.param)
  model.save_pretrained(folder, **saved)
  for name in ("tokenizer.json", "tokenizer_config.json"):
    if (source / name).is_file():
      shutil.copy(source / name, folder)
  size = content.get("image_size") or model.config.vision_config.image_size
  processor = json.loads((source / "preprocessor_config.json").read_text())
  processor |= {
    "size": {"height": size, "width": size} if kind == "siglip" else {"shortest_edge": size},
    "crop_size": {"height": size, "width": size},
  }
  (folder / "preprocessor_config.json").write_text(json.dumps(processor))
  return model.float(), hugging_face.load(folder)


def relative(found, want):
  return np.abs(np.asarray(found) - want).max() / np.ptp(want)


def embeddings(found):
  """Features of get_image_features and get_text_features, whichever form they are returned in."""
  return found if hasattr(found, "detach") else found.pooler_output


def image_of(towers, pixels, params=None, dtype=jnp.float32):
  """(embedding before its norm, tokens) of standardised pixels [B, 3, H, W]."""
  tower = ImageTower(**towers.image | {"dtype": dtype})

  def encode(params, x):
    bound = tower.bind({"params": params})
    pooled, tokens = bound.backbone(x)
    return (bound.projection(pooled) if bound.projection else pooled), tokens

  params = towers.params["image_encoder"] if params is None else params
  return jax.jit(encode)(params, pixels.transpose(0, 2, 3, 1))


def text_of(towers, params, ids, lengths, dtype=jnp.float32):
  """Embeddings before their norm."""
  tower = TextTower(**towers.text | {"normalize": "none", "dtype": dtype})
  return jax.jit(tower.apply)({"params": params}, ids, lengths)


def pixels_of(towers):
  size = towers.data["image_size"]
  return np.random.default_rng(0).normal(size=(3, 3, size, size)).astype(np.float32)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_pixels_and_sentences_give_the_same_embeddings(pair, dtype, bound):
  import torch

  model, towers = pair
  pixels = pixels_of(towers)
  pooled, tokens = image_of(towers, pixels, dtype=jnp.dtype(dtype))
  with torch.no_grad():
    if towers.text is None:
      found = model(torch.from_numpy(pixels))
      assert relative(pooled, found.pooler_output.numpy()) < bound
      assert relative(tokens, found.last_hidden_state.numpy()) < bound
      return
    ids, lengths, cut = Subwords(towers.tokenizer).encode_texts(TEXTS)
    assert cut >= 1
    image = embeddings(model.get_image_features(pixel_values=torch.from_numpy(pixels))).numpy()
    text = embeddings(model.get_text_features(input_ids=torch.from_numpy(ids).long())).numpy()
  assert relative(pooled, image) < bound
  assert relative(text_of(towers, towers.params["text_encoder"], ids, lengths, dtype), text) < bound


def test_the_gradient_of_an_image_tower_is_pytorchs(pair):
  import torch

  model, towers = pair
  pixels = pixels_of(towers)
  weights = np.random.default_rng(1).normal(size=(3, towers.image["dim"])).astype(np.float32)
  model.zero_grad()
  given = torch.from_numpy(pixels)
  if towers.text is None:
    found, front = model(given).pooler_output, ""
  else:
    found, front = embeddings(model.get_image_features(pixel_values=given)), "vision_model."
  (found * torch.from_numpy(weights)).sum().backward()
  gradient = jax.grad(lambda params: (image_of(towers, pixels, params)[0] * weights).sum())(
    towers.params["image_encoder"]
  )["backbone"]
  block = "encoder.layer.0.mlp.fc1" if towers.text is None else "encoder.layers.0.mlp.fc1"
  theirs = dict(model.named_parameters())
  want = theirs[f"{front}{block}.weight"].grad.numpy().T
  assert relative(gradient["layer0"]["mlp"]["up"]["kernel"], want) < 1e-4
  name = (
    "embeddings.patch_embeddings.projection"
    if towers.text is None
    else ("embeddings.patch_embedding")
  )
  want = theirs[f"{front}{name}.weight"].grad.numpy().transpose(2, 3, 1, 0)
  assert relative(gradient["patches"]["kernel"], want) < 1e-4


def gemma():
  """A small tokenizer in Gemma's layout."""
  tokenizers = pytest.importorskip("tokenizers")
  made = tokenizers.Tokenizer(
    tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
  )
  made.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
  made.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
  special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, special_tokens=special)
  made.train_from_iterator(["a man rides a bicycle and two red dogs in the Big City"] * 3, trainer)
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A <eos>", special_tokens=[("<eos>", 1)]
  )
  return made


@pytest.mark.parametrize("kind", ["Siglip2Tokenizer", "GemmaTokenizerFast", "TokenizersBackend"])
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_ids_are_those_of_the_named_tokenizer(kind, side, tmp_path):
  """Siglip2Tokenizer lowers capitals, and both of its line pad in front, whatever the file says."""
  transformers = pytest.importorskip("transformers")
  reference.vision()
  made = gemma()
  made.save(str(tmp_path / "tokenizer.json"))
  settings = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
  settings |= {"tokenizer_class": kind, "model_max_length": 16}
  settings |= {"add_bos_token": False, "add_eos_token": True}
  settings |= {"padding_side": side} if side else {}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  texts = [*TEXTS, "A Man and TWO Dogs"]
  want = theirs(texts, padding="max_length", truncation=True, max_length=16)["input_ids"]
  content = read_subwords(tmp_path, size=made.get_vocab_size(), context=16, fill=True)
  np.testing.assert_array_equal(Subwords(content).encode_texts(texts)[0], want)


def test_the_gradient_of_a_text_tower_is_pytorchs(pair):
  import torch

  model, towers = pair
  if towers.text is None:
    pytest.skip("an image tower alone")
  ids, lengths, _ = Subwords(towers.tokenizer).encode_texts(TEXTS)
  weights = np.random.default_rng(1).normal(size=(len(TEXTS), towers.text["dim"]))
  weights = weights.astype(np.float32)
  model.zero_grad()
  found = embeddings(model.get_text_features(input_ids=torch.from_numpy(ids).long()))
  (found * torch.from_numpy(weights)).sum().backward()
  gradient = jax.grad(lambda params: (text_of(towers, params, ids, lengths) * weights).sum())(
    towers.params["text_encoder"]
  )
  block = gradient["backbone"]["layer0"]
  theirs = dict(model.named_parameters())
  for ours, name in (
    (block["mlp"]["up"]["kernel"], "text_model.encoder.layers.0.mlp.fc1.weight"),
    (block["attention"]["value"]["kernel"], "text_model.encoder.layers.0.self_attn.v_proj.weight"),
    (block["norm1"]["scale"], "text_model.encoder.layers.0.layer_norm1.weight"),
  ):
    want = theirs[name].grad.numpy()
    assert relative(ours, want.T if want.ndim == 2 else want) < 1e-4, name


@pytest.mark.parametrize("lower", [True, False])
def test_ids_are_those_of_siglips_first_tokenizer(lower, shared, tmp_path):
  """Without punctuation and, but for do_lower_case=false, capitals; padded to 64 as trained."""
  sentencepiece = pytest.importorskip("sentencepiece")
  transformers = pytest.importorskip("transformers")
  reference.vision()
  from transformers.convert_slow_tokenizer import T5Converter

  images = json.loads((shared / "data/flickr8k/dataset_flickr8k.json").read_text())["images"]
  captions = [each["raw"] for image in images[:200] for each in image["sentences"]]
  with open(tmp_path / "spiece.model", "wb") as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter([caption.lower() for caption in captions] + ["The City Of Paris"]),
      model_writer=file,
      vocab_size=400,
      **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2},
    )
  theirs = transformers.SiglipTokenizer(
    vocab_file=str(tmp_path / "spiece.model"), model_max_length=64, do_lower_case=lower
  )
  theirs.save_pretrained(tmp_path)
  # Released folders hold the same pieces as tokenizer.json; the converter asks for T5's own ids.
  theirs._extra_ids = 0
  T5Converter(theirs).converted().save(str(tmp_path / "tokenizer.json"))
  texts = [
    *TEXTS,
    "A Man, in Paris!",
    "Dogs' run.  x",
    "it's a_b-c {}",
    "a\tb\nc",
    "\uff26",
    *captions,
  ]
  want = theirs(texts, padding="max_length", truncation=True, max_length=64)["input_ids"]
  content = read_subwords(tmp_path, size=len(theirs), context=64, fill=True)
  found = Subwords(content).encode_texts(texts)[0]
  assert found.shape == (len(texts), 64)
  np.testing.assert_array_equal(found, want)
