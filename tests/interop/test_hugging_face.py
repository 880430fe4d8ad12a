"""Towers of Hugging Face folders against what transformers computes from them, and folders that do
not fit.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDEN

from xmr.data.subwords import Subwords
from xmr.errors import UserError
from xmr.interop import hugging_face
from xmr.models import text_tower
from xmr.models.text_tower import TextTower
from xmr.models.vit import ImageTower

TOWERS = GOLDEN / "towers"
KINDS = ("clip", "siglip", "dinov2", "dinov2_with_registers")


@pytest.fixture(scope="module", params=KINDS)
def towers(request):
  """(folder name, Towers, expected arrays)."""
  with np.load(TOWERS / request.param / "expected.npz", allow_pickle=False) as arrays:
    return request.param, hugging_face.load(TOWERS / request.param), dict(arrays)


def relative(found, want):
  """Largest difference in units of the range of what is wanted."""
  found = np.asarray(found, np.float32)
  assert found.shape == want.shape
  return np.abs(found - want).max() / (want.max() - want.min())


def encode_pixels(towers, params, pixels, dtype=jnp.float32, **changes):
  """(pooled, tokens) of standardised pixels [B, 3, H, W]."""
  encoder = ImageTower(**towers.image | {"dtype": dtype, **changes})

  def encode(params, x):
    bound = encoder.bind({"params": params})
    pooled, tokens = bound.backbone(x)
    return (bound.projection(pooled) if bound.projection else pooled), tokens

  return jax.jit(encode)(params["image_encoder"], pixels.transpose(0, 2, 3, 1))


def unit(x):
  x = np.asarray(x, np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def encode_text(towers, params, ids, lengths, dtype=jnp.float32, **changes):
  encoder = TextTower(**towers.text | {"dtype": dtype, **changes})
  return encoder.apply({"params": params["text_encoder"]}, ids, lengths)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_images_are_encoded_as_transformers_does(towers, dtype, bound):
  name, found, want = towers
  pooled, tokens = encode_pixels(found, found.params, want["pixels"], jnp.dtype(dtype))
  if name.startswith("dinov2"):
    assert relative(pooled, want["pooled"]) < bound
    assert relative(tokens, want["tokens"]) < bound
  else:
    assert relative(unit(pooled), want["image"]) < bound


def test_images_of_the_trained_size_need_no_interpolation(towers):
  name, found, want = towers
  if not name.startswith("dinov2"):
    pytest.skip("only DINOv2's golden pixels are of another size than in training")
  pixels = want["pixels"]
  larger = np.asarray(jax.image.resize(pixels, (*pixels.shape[:2], 56, 56), "linear"))
  assert relative(encode_pixels(found, found.params, larger)[0], want["pooled_56"]) < 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_texts_are_encoded_as_transformers_does(towers, dtype, bound):
  name, found, want = towers
  if found.text is None:
    pytest.skip("an image tower alone")
  texts = json.loads((TOWERS / "texts.json").read_text())
  ids, lengths, cut = Subwords(found.tokenizer).encode_texts(texts)
  np.testing.assert_array_equal(ids, want["input_ids"])
  starts = 1 if name == "clip" else 0  # SigLIP's texts begin without a token of their own.
  assert cut == 1 and lengths.tolist() == [10 + starts, 1 + starts, 16, 12 + starts, 11 + starts]
  text = encode_text(found, found.params, ids, lengths, jnp.dtype(dtype))
  assert relative(text, want["text"]) < bound
  if dtype == "float32":
    logits = want["image"] @ np.asarray(text).T / found.temperature + (found.bias or 0)
    assert relative(logits, want["logits"]) < 1e-5


def changed(params, path, change):
  """A copy of nested params with one leaf changed."""
  copy = jax.tree.map(np.array, params)
  *modules, leaf = path.split("/")
  place = copy
  for name in modules:
    place = place[name]
  place[leaf] = change(place[leaf])
  return copy


def test_planted_faults_in_an_image_tower_are_caught(towers):
  name, found, want = towers
  wanted = want["image"] if "image" in want else unit(want["pooled"])
  gelu = {"quick": "exact", "exact": "tanh", "tanh": "quick"}[found.image["gelu"]]
  backbone = "image_encoder/backbone"
  faults = [({"gelu": gelu}, None), ({"epsilon": 1e-3}, None)]
  faults += [({}, (f"{backbone}/layer1/attention/output/kernel", np.transpose))]
  faults += [({}, (f"{backbone}/positions", lambda x: np.roll(x, 1, axis=0)))]
  if name == "siglip":
    faults += [({}, (f"{backbone}/pool/attention/query/kernel", np.transpose))]
  if name == "dinov2_with_registers":
    faults += [({"antialias": False}, None), ({}, (f"{backbone}/registers", np.zeros_like))]
  for changes, damage in faults:
    params = changed(found.params, *damage) if damage else found.params
    pooled, _ = encode_pixels(found, params, want["pixels"], **changes)
    assert relative(unit(pooled), wanted) > 2e-5, (changes, damage)


def test_planted_faults_of_the_pooling_are_caught(towers, monkeypatch):
  """A patch in place of the class token, a mean in place of attention, the end of a text in place
  of its last token.
  """
  name, found, want = towers
  wanted = want["image"] if "image" in want else unit(want["pooled"])
  _, tokens = encode_pixels(found, found.params, want["pixels"])
  wrong = np.asarray(tokens.mean(1) if name == "siglip" else tokens[:, 1])
  if found.image["project"]:
    wrong = wrong @ found.params["image_encoder"]["projection"]["kernel"]
  assert relative(unit(wrong), wanted) > 1e-3
  if name == "siglip":
    monkeypatch.setitem(text_tower.KINDS["siglip"], "pool", "end")
    texts = json.loads((TOWERS / "texts.json").read_text())
    ids, lengths, _ = Subwords(found.tokenizer).encode_texts(texts)
    assert relative(encode_text(found, found.params, ids, lengths), want["text"]) > 1e-3


def test_planted_faults_in_a_text_tower_are_caught(towers):
  name, found, want = towers
  if found.text is None:
    pytest.skip("an image tower alone")
  texts = json.loads((TOWERS / "texts.json").read_text())
  ids, lengths, _ = Subwords(found.tokenizer).encode_texts(texts)
  other = "exact" if found.text["gelu"] == "quick" else "quick"
  for changes in ({"gelu": other}, {"epsilon": 1e-3}):
    assert relative(encode_text(found, found.params, ids, lengths, **changes), want["text"]) > 2e-5
  for path in ("layer1/attention/query/kernel", "layer0/attention/value/kernel"):
    wrong = changed(found.params, f"text_encoder/backbone/{path}", np.transpose)
    assert relative(encode_text(found, wrong, ids, lengths), want["text"]) > 1e-3
  if name == "clip":
    assert relative(encode_text(found, found.params, ids, lengths - 1), want["text"]) > 1e-3
  else:
    rolled = changed(found.params, "text_encoder/backbone/positions", lambda x: np.roll(x, 1, 0))
    assert relative(encode_text(found, rolled, ids, lengths), want["text"]) > 1e-3


def test_tokens_are_patches_and_words_in_the_joint_space(towers):
  name, found, want = towers
  variables = {"params": found.params["image_encoder"]}
  image, grid = ImageTower(**found.image), found.image["grid"]
  side = grid * found.image["patch"]
  pixels = np.random.default_rng(0).integers(0, 255, (2, side, side, 3)).astype(np.uint8)
  tokens = image.apply(variables, pixels, tokens=True)
  assert tokens.shape == (2, grid**2, found.image["dim"]) and tokens.mask.all()
  bound = image.bind(variables)
  hidden = bound.backbone((pixels / 255 - np.array(image.mean)) / np.array(image.std))[1]
  front = hidden.shape[1] - grid**2
  assert front == {"clip": 1, "siglip": 0, "dinov2": 1}.get(name, 1 + found.image["registers"])
  patches = hidden[:, front:]
  np.testing.assert_allclose(
    tokens.x, bound.projection(patches) if image.project else patches, atol=1e-5
  )
  if found.text is None:
    return
  text = TextTower(**found.text)
  variables = {"params": found.params["text_encoder"]}
  subwords = Subwords(found.tokenizer)
  ids, lengths, _ = subwords.encode_texts(["a dog", ""])
  tokens = text.apply(variables, ids, lengths, tokens=True)
  assert tokens.shape == (2, 16, found.text["dim"]) and not tokens.mask[1].any()
  pieces = subwords.pieces(ids[0][np.asarray(tokens.mask[0])])
  assert "".join(pieces).translate(dict.fromkeys(map(ord, "\u0120\u2581"))) == "adog"


def test_remat_changes_no_number(towers):
  _, found, want = towers
  still = encode_pixels(found, found.params, want["pixels"])[0]
  np.testing.assert_array_equal(
    still, encode_pixels(found, found.params, want["pixels"], remat=True)[0]
  )


@pytest.fixture
def folder(tmp_path):
  """A copy of the golden CLIP folder."""
  for file in (TOWERS / "clip").iterdir():
    shutil.copy(file, tmp_path)
  return tmp_path


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def vision(folder, **changes):
  config = json.loads((folder / "config.json").read_text())
  edit(folder / "config.json", vision_config=config["vision_config"] | changes)


def text(folder, **changes):
  config = json.loads((folder / "config.json").read_text())
  edit(folder / "config.json", text_config=config["text_config"] | changes)


def without(path, name):
  path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != name}))


def processor(folder, **changes):
  edit(folder / "preprocessor_config.json", **changes)


def pointer(folder):
  (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid ...")


def json_pointer(folder):
  (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid ...")


def parts_of_a_tokenizer(folder):
  (folder / "tokenizer.json").unlink()
  for name in ("vocab.json", "merges.txt"):
    (folder / name).write_text("{}")


def shards(folder):
  (folder / "model.safetensors").unlink()
  index = {"weight_map": {"logit_scale": "a-1-of-2.safetensors", "x": "a-2-of-2.safetensors"}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  (folder / "a-1-of-2.safetensors").write_bytes(b"")


def cut_short(folder):
  content = (folder / "model.safetensors").read_bytes()
  (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
  ("damage", "words"),
  [
    (pointer, "model.safetensors: is a git-lfs pointer, not the file itself"),
    (json_pointer, "tokenizer.json: is a git-lfs pointer, not the file itself"),
    (shards, "lacks 1 of 2 shards (a-2-of-2.safetensors); download them again"),
    (cut_short, "model.safetensors: not a whole safetensors file"),
    (lambda f: (f / "model.safetensors").unlink(), "expected the weights, model.safetensors or"),
    (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    (parts_of_a_tokenizer, "expected it beside vocab.json and merges.txt: transformers writes it"),
    (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json: no such file"),
    (
      lambda f: edit(f / "config.json", model_type="blip"),
      "model_type is 'blip'; expected one of clip, siglip, dinov2, dinov2_with_registers; bert",
    ),
    (lambda f: edit(f / "config.json", model_type="siglip2"), "'siglip2' (NaFlex); expected one"),
    (
      lambda f: text(f, vocab_size=49408),
      "tokenizer.json: has 390 ids, config.json has vocab_size 49408; they are of two models",
    ),
    (lambda f: text(f, num_hidden_layers=3), "missing text_model.encoder.layers.2."),
    (lambda f: text(f, num_hidden_layers=1), "extra text_model.encoder.layers.1."),
    (lambda f: text(f, num_attention_heads=5), "hidden_size 48 is no multiple of num_attention"),
    (lambda f: text(f, hidden_act="swish"), "hidden_act is 'swish'; expected one of quick_gelu"),
    (lambda f: vision(f, patch_size=0), "patch_size is 0; expected a positive integer"),
    (
      lambda f: processor(f, crop_size={"height": 50, "width": 50}, size={"shortest_edge": 60}),
      "images of 50 pixels, which patches of 16 do not divide",
    ),
    (
      lambda f: vision(f, image_size=8),
      "image_size is 8; expected at least one patch of patch_size",
    ),
    (lambda f: vision(f, layer_norm_eps=[]), "layer_norm_eps is []; expected a number"),
    (lambda f: vision(f, mlp_ratio="4"), "mlp_ratio is '4'; expected a number"),
    (
      lambda f: edit(f / "config.json", vision_config=[1]),
      "vision_config is a list; expected an ob",
    ),
    (lambda f: edit(f / "config.json", projection_dim="40"), "has '40' units; expected a positive"),
    (
      lambda f: without(f / "preprocessor_config.json", "image_mean"),
      "image_mean is None; expected",
    ),
    (lambda f: processor(f, rescale_factor=None), "rescale_factor is None; expected 1/255"),
    (
      lambda f: without(f / "preprocessor_config.json", "crop_size"),
      "crop_size is {'shortest_edge",
    ),
    (lambda f: processor(f, resample=[]), "resample is []; expected one of 2 (bilinear)"),
    (lambda f: edit(f / "config.json", model_type=[]), "model_type is []; expected one of clip"),
    (lambda f: processor(f, image_std=[1, 2]), "image_std is [1, 2]; expected three numbers"),
    (lambda f: processor(f, resample=1), "resample is 1; expected one of 2 (bilinear), 3 (bicubic"),
    (lambda f: processor(f, size={"height": 48, "width": 50}), "expected one length for both"),
  ],
)
def test_what_does_not_fit_is_said_in_one_line(folder, damage, words):
  damage(folder)
  with pytest.raises(UserError) as error:
    hugging_face.load(folder)
  assert words in str(error.value) and "\n" not in str(error.value)


def test_weights_in_shards_are_the_same_weights(folder):
  import safetensors.numpy

  whole = hugging_face.load(folder)
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  names = sorted(tensors)
  (folder / "model.safetensors").unlink()
  places = {}
  for number, part in enumerate((names[:30], names[30:])):
    file = f"model-{number}.safetensors"
    safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / file)
    places |= dict.fromkeys(part, file)
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
  jax.tree.map(np.testing.assert_array_equal, hugging_face.load(folder).params, whole.params)


def test_texts_of_another_width_than_images_without_projection_are_refused(tmp_path):
  for file in (TOWERS / "siglip").iterdir():
    shutil.copy(file, tmp_path)
  text(tmp_path, projection_size=24)
  with pytest.raises(UserError, match="images 48 numbers .* and texts 24"):
    hugging_face.load(tmp_path)


def test_the_files_that_transformers_5_and_its_first_versions_write_are_the_same_towers(folder):
  """A processor inside processor_config.json, and sizes in text_config_dict, which count there."""
  whole = hugging_face.load(folder)
  old = folder / "preprocessor_config.json"
  nested = {"image_processor": json.loads(old.read_text()), "processor_class": "CLIPProcessor"}
  (folder / "processor_config.json").write_text(json.dumps(nested))
  old.unlink()
  config = json.loads((folder / "config.json").read_text())
  edit(folder / "config.json", text_config_dict=config["text_config"], vision_config_dict=None)
  text(folder, num_attention_heads=2)
  found = hugging_face.load(folder)
  assert (found.data, found.image, found.text) == (whole.data, whole.image, whole.text)
