"""BERT, MiniLM and MPNet in Hugging Face folders: the network, its weights and its tokenizer."""

import pathlib

import jax.numpy as jnp
import numpy as np

from xmr.data.subwords import Subwords
from xmr.errors import UserError
from xmr.interop.folders import read_json, read_weights
from xmr.interop.subwords import read_subwords
from xmr.interop.torch_files import compare, refuse, template
from xmr.interop.tower_names import ACTIVATIONS
from xmr.models.transformer import Architecture, Transformer

_EMBEDDINGS = {
  "words": "embeddings.word_embeddings",
  "positions": "embeddings.position_embeddings",
  "types": "embeddings.token_type_embeddings",
  "norm": "embeddings.LayerNorm",
  "distances": "encoder.relative_attention_bias",
}
_LAYER = {
  "bert": {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "feed_norm": "output.LayerNorm",
  },
  "mpnet": {
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "output": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "feed_norm": "output.LayerNorm",
  },
}


def hugging_face_name(path, *, kind):
  """Name in a Hugging Face BertModel or MPNetModel of one of our parameters.

  Args:
    path: of modules and a leaf.  kind: "bert" or "mpnet".
  """
  *modules, leaf = path
  leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}[leaf]
  if len(modules) == 1:
    return f"{_EMBEDDINGS[modules[0]]}.{leaf}"
  layer, part = modules
  return f"encoder.layer.{layer.removeprefix('layer')}.{_LAYER[kind][part]}.{leaf}"


def read_architecture(folder):
  """Sizes of the network in a Hugging Face folder.

  Args:
    folder: path, with config.json.
  Returns:
    Architecture.
  Raises:
    UserError: no config.json, a family other than bert and mpnet, or a missing or impossible field.
  """
  path = pathlib.Path(folder) / "config.json"
  config = read_json(path)
  kind = config.get("model_type")
  if kind not in _LAYER:
    raise UserError(f"{path}: model_type is {kind!r}; expected one of {sorted(_LAYER)}")
  sizes = {
    "vocabulary": "vocab_size",
    "hidden": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "positions": "max_position_embeddings",
  }
  for field in sizes.values():
    if type(config.get(field)) is not int or config[field] < 1:
      raise UserError(f"{path}: {field} is {config.get(field)!r}; expected a positive integer")
  if config["hidden_size"] % config["num_attention_heads"]:
    raise UserError(
      f"{path}: hidden_size {config['hidden_size']} is no multiple of num_attention_heads "
      f"{config['num_attention_heads']}"
    )
  if config.get("hidden_act", "gelu") not in ACTIVATIONS:
    raise UserError(
      f"{path}: hidden_act is {config['hidden_act']!r}; expected one of {sorted(ACTIVATIONS)}"
    )
  if config.get("position_embedding_type", "absolute") != "absolute":
    raise UserError(
      f"{path}: position_embedding_type is {config['position_embedding_type']!r}; expected "
      "'absolute'"
    )
  return Architecture(
    kind=kind,
    **{ours: config[theirs] for ours, theirs in sizes.items()},
    epsilon=config.get("layer_norm_eps", 1e-12),
    activation=ACTIVATIONS[config.get("hidden_act", "gelu")],
    types=config.get("type_vocab_size", 2),
    buckets=config.get("relative_attention_num_buckets", 32),
    pad=1 if kind == "mpnet" else config.get("pad_token_id") or 0,
    dropout=config.get("hidden_dropout_prob", 0.1),
  )


def settings(folder):
  """The fields of a config that the folder's network needs: {"model.text.width": 384, ...}."""
  net = read_architecture(folder)
  fields = {
    "name": net.kind,
    "width": net.hidden,
    "layers": net.depth,
    "heads": net.heads,
    "mlp_width": net.intermediate,
    "positions": net.positions,
    "gelu": net.activation,
    "epsilon": net.epsilon,
    "pad": net.pad,
    "types": net.types,
    "buckets": net.buckets,
    "dropout": net.dropout,
  }
  context = tokenizer(folder)["context"]
  result = {f"model.text.{name}": value for name, value in fields.items()}
  return {"data.text": "words", "data.max_length": context, "vocabulary.tokenizer": str(folder)} | (
    result
  )


def load_folder(folder, *, normalize=False, longest=0, dtype=jnp.float32):
  """A sentence encoder with its weights and tokenizer.

  Args:
    folder: Hugging Face folder with config.json, model.safetensors, tokenizer.json.
    normalize: scale embeddings to unit length.  longest: most tokens of a text, see tokenizer.
    dtype: of the computation.
  Returns:
    encoder: Transformer.  variables: {"params": nested NumPy}.  tokenizer: Subwords.
  Raises:
    UserError: a file is missing, broken or of another model.
  """
  net = read_architecture(folder)
  words = Subwords(tokenizer(folder, longest=longest))
  return Transformer(net, normalize, dtype=dtype), variables(folder), words


def tokenizer(folder, *, longest=0):
  """The content of the folder's Subwords.

  Args:
    folder: Hugging Face folder.
    longest: most tokens of a text, special tokens included; 0 takes sentence_bert_config.json's
      max_seq_length, or the network's positions.
  """
  net, settings = read_architecture(folder), pathlib.Path(folder) / "sentence_bert_config.json"
  if not longest and settings.exists():
    longest = read_json(settings).get("max_seq_length") or 0
  longest = min(longest or net.longest, net.longest)
  return read_subwords(folder, size=net.vocabulary, context=longest) | {"pad": net.pad}


def variables(folder):
  """Parameters of the network in a Hugging Face folder: {"params": nested NumPy float32}.

  Raises:
    UserError: as load_folder.
  """
  net = read_architecture(folder)
  found, path = read_weights(folder)
  # In a model with heads, the names of the encoder's tensors begin with the family's.
  tensors = {name.removeprefix(f"{net.kind}."): value for name, value in found.items()}
  shapes = template(Transformer(net), np.zeros((1, 2), np.int32), np.ones(1, np.int32))
  params, problems = compare(
    shapes,
    tensors,
    name=lambda path: hugging_face_name(path, kind=net.kind),
    ignored=("pooler.", "cls.", "lm_head.", "embeddings.position_ids"),
  )
  if problems:
    refuse(problems, source=path, kind=net.kind)
  return params
