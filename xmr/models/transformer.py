"""Sentence encoders of the BERT family (BERT, MiniLM, MPNet) from a Hugging Face folder,
mean-pooled.
"""

import dataclasses
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xmr.errors import UserError
from xmr.interop.torch_files import compare, read_tensors, refuse, template

ACTIVATIONS = {
  "gelu": lambda x: nn.gelu(x, approximate=False),
  "gelu_new": nn.gelu,
  "gelu_pytorch_tanh": nn.gelu,
  "relu": nn.relu,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
  """What config.json says about the network; sizes in units, dropout as a rate."""

  kind: str  # "bert" (also MiniLM) or "mpnet"
  vocabulary: int
  hidden: int
  depth: int
  heads: int
  intermediate: int
  positions: int
  epsilon: float = 1e-12
  activation: str = "gelu"
  types: int = 2  # BERT only
  buckets: int = 32  # MPNet only
  pad: int = 0
  dropout: float = 0.1

  @property
  def longest(self):
    """The longest text in tokens; MPNet's positions begin after the padding id."""
    return self.positions - (self.pad + 1 if self.kind == "mpnet" else 0)


def relative_buckets(length, *, buckets, farthest=128):
  """Bucket of each (query, key) distance: [length, length] int, the same for every layer.

  Half of the buckets are for keys after the query. Of each half, the first half holds one distance
  each, the rest grow logarithmically up to `farthest`.

  References:
    Raffel et al., T5, JMLR 2020, section 2.1; MPNet uses 32 buckets.
  """
  offset = np.arange(length)[None, :] - np.arange(length)[:, None]
  side = buckets // 2
  exact = side // 2
  distance = np.abs(offset)
  # float32, as in PyTorch: a distance on a bucket's border must fall on the same side.
  ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
    np.log(farthest / exact)
  )
  far = np.minimum(exact + (ratio * np.float32(side - exact)).astype(np.int64), side - 1)
  return np.where(offset > 0, side, 0) + np.where(distance < exact, distance, far)


class Layer(nn.Module):
  """Self-attention and feed-forward, each followed by dropout, residual and layer norm
  (post-norm).
  """

  architecture: Architecture
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, bias, train):
    net = self.architecture

    def dense(width, name):
      return nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02), name=name)

    def norm(name):
      return nn.LayerNorm(epsilon=net.epsilon, dtype=self.dtype, name=name)

    def split(y):
      return y.reshape(*y.shape[:2], net.heads, -1)

    dropout = nn.Dropout(net.dropout, deterministic=not train)
    query, key, value = (split(dense(net.hidden, name)(x)) for name in ("query", "key", "value"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    weights = dropout(jax.nn.softmax((scores + bias).astype(jnp.float32)).astype(self.dtype))
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
    x = norm("attention_norm")(x + dropout(dense(net.hidden, "output")(y)))
    y = ACTIVATIONS[net.activation](dense(net.intermediate, "up")(x))
    return norm("feed_norm")(x + dropout(dense(net.hidden, "down")(y)))


class Transformer(nn.Module):
  """BERT, MiniLM or MPNet encoder with the mean of its last hidden states over the text's tokens.

  Args:
    architecture: sizes, from read_architecture.  normalize: divide each row by its l2 norm.
    dtype: of the computation; parameters stay float32.
  Call:
    text: [B, L] int32 token ids with the special tokens; L at most architecture.longest.
    text_length: [B] int32, tokens of each row; the rest is padding, whatever it holds.
    train: dropout on (rng "dropout").
  Returns:
    [B, hidden] float32.
  Raises:
    ValueError: wrong shape, or more tokens than positions.
  References:
    Devlin et al., BERT, 2019; Song et al., MPNet, 2020; Reimers and Gurevych, Sentence-BERT, 2019
    (mean pooling).
  """

  architecture: Architecture
  normalize: bool = False
  dtype: jnp.dtype = jnp.float32

  @property
  def features(self):
    return self.architecture.hidden

  @nn.compact
  def __call__(self, text, text_length, *, train=False):
    net = self.architecture
    if text.ndim != 2 or text_length.shape != text.shape[:1]:
      raise ValueError(
        f"text has shape {text.shape}, text_length {text_length.shape}; expected [B, L] and [B]"
      )
    if text.shape[1] > net.longest:
      raise ValueError(
        f"text has {text.shape[1]} tokens; this network has positions for {net.longest}"
      )

    def embed(count, name):
      return nn.Embed(
        count, net.hidden, dtype=self.dtype, embedding_init=nn.initializers.normal(0.02), name=name
      )

    mask = jnp.arange(text.shape[1]) < text_length[:, None]
    x = embed(net.vocabulary, "words")(text)
    position = jnp.arange(text.shape[1])
    bias = jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min / 2)[:, None, None, :]
    if net.kind == "mpnet":
      x = x + embed(net.positions, "positions")(position + net.pad + 1)
      table = nn.Embed(
        net.buckets, net.heads, embedding_init=nn.initializers.normal(0.02), name="distances"
      )
      bias = bias + table(relative_buckets(text.shape[1], buckets=net.buckets)).transpose(2, 0, 1)
    else:
      x = (
        x
        + embed(net.types, "types")(jnp.zeros_like(text))
        + embed(net.positions, "positions")(position)
      )
    x = nn.LayerNorm(epsilon=net.epsilon, dtype=self.dtype, name="norm")(x)
    x = nn.Dropout(net.dropout, deterministic=not train)(x)
    for i in range(net.depth):
      x = Layer(net, self.dtype, name=f"layer{i}")(x, bias, train)
    # Sums in float32 whatever the computation: a mean over many tokens loses digits in bfloat16.
    x = x.astype(jnp.float32)
    mean = (x * mask[..., None]).sum(1) / jnp.maximum(text_length, 1)[:, None]
    if self.normalize:
      mean = mean / jnp.maximum(jnp.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    return mean


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
  """Name of one of our parameters, a path of modules and a leaf, in a Hugging Face BertModel or
  MPNetModel.
  """
  *modules, leaf = path
  leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}[leaf]
  if len(modules) == 1:
    return f"{_EMBEDDINGS[modules[0]]}.{leaf}"
  layer, part = modules
  return f"encoder.layer.{layer.removeprefix('layer')}.{_LAYER[kind][part]}.{leaf}"


def _json(path):
  try:
    found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(
      f"{path}: no such file; expected config.json, model.safetensors, tokenizer.json"
    ) from None
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: not a JSON file ({error})") from None
  if not isinstance(found, dict):
    raise UserError(f"{path}: holds a {type(found).__name__}; expected a JSON object")
  return found


def read_architecture(folder):
  """Sizes of the network in a Hugging Face folder.

  Args:
    folder: path with config.json.
  Returns:
    Architecture.
  Raises:
    UserError: no config.json, another family than bert or mpnet, a missing or impossible field.
  """
  path = pathlib.Path(folder) / "config.json"
  config = _json(path)
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
    activation=config.get("hidden_act", "gelu"),
    types=config.get("type_vocab_size", 2),
    buckets=config.get("relative_attention_num_buckets", 32),
    pad=1 if kind == "mpnet" else config.get("pad_token_id") or 0,
    dropout=config.get("hidden_dropout_prob", 0.1),
  )


class Tokenizer:
  """Token ids of sentences, from a folder's tokenizer.json.

  Args:
    folder: Hugging Face folder.  longest: most tokens of a text, special tokens included; 0 takes
      sentence_bert_config.json's max_seq_length, or the network's positions.
  Raises:
    UserError: no or broken tokenizer.json, the `tokenizers` package is missing, or its ids do not
      fit the network.
  """

  def __init__(self, folder, *, longest=0):
    try:
      import tokenizers
    except ImportError:
      raise UserError("reading tokenizer.json needs tokenizers: pip install xmr[convert]") from None
    folder = pathlib.Path(folder)
    net = read_architecture(folder)
    path = folder / "tokenizer.json"
    _json(path)
    try:
      self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
      raise UserError(f"{path}: not a tokenizer ({error})") from None
    ids = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    # An embedding table may be padded up to a round size, never by more than a block of 128.
    if not ids <= net.vocabulary < ids + 128:
      raise UserError(
        f"{path}: has {ids} ids, config.json has vocab_size {net.vocabulary}; they are of two "
        "models"
      )
    if not longest and (folder / "sentence_bert_config.json").exists():
      longest = _json(folder / "sentence_bert_config.json").get("max_seq_length") or 0
    self.longest = min(longest or net.longest, net.longest)
    self.pad = net.pad
    self._tokenizer.no_padding()
    self._tokenizer.enable_truncation(self.longest)

  def __call__(self, texts, *, length=0):
    """Ids [B, L] int32 padded with the padding id and lengths [B] int32; L is `length` or the
    longest text's.
    """
    rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
    longest = max(map(len, rows), default=0)
    if length and longest > length:
      raise ValueError(f"a text has {longest} tokens; expected at most {length}")
    ids = np.full((len(rows), length or longest), self.pad, np.int32)
    for row, found in zip(ids, rows, strict=True):
      row[: len(found)] = found
    return ids, np.array([len(found) for found in rows], np.int32)


def load_folder(folder, *, normalize=False, longest=0, dtype=jnp.float32):
  """A sentence encoder with its weights and tokenizer.

  Args:
    folder: Hugging Face folder with config.json, model.safetensors, tokenizer.json.
    normalize: unit rows.  longest: most tokens of a text, see Tokenizer.  dtype: of the
      computation.
  Returns:
    encoder: Transformer.  variables: {"params": nested NumPy}.  tokenizer: Tokenizer.
  Raises:
    UserError: a file is missing, broken, or of another model.
  """
  net = read_architecture(folder)
  tokenizer = Tokenizer(folder, longest=longest)
  encoder = Transformer(net, normalize, dtype)
  return encoder, read_weights(folder), tokenizer


def read_weights(folder):
  """Parameters of the network in a Hugging Face folder, {"params": nested NumPy float32}; UserError
  as load_folder.
  """
  net = read_architecture(folder)
  path = pathlib.Path(folder) / "model.safetensors"
  if not path.is_file():
    raise UserError(f"{path}: no such file; expected the safetensors form of the weights")
  # Heads and pooler stand beside the encoder, and a whole model has its name in front.
  tensors = {}
  for name, value in read_tensors(path).items():
    tensors[name.removeprefix(f"{net.kind}.")] = value
  shapes = template(Transformer(net), np.zeros((1, 2), np.int32), np.ones(1, np.int32))
  variables, problems = compare(
    shapes,
    tensors,
    name=lambda path: hugging_face_name(path, kind=net.kind),
    ignored=("pooler.", "cls.", "lm_head.", "embeddings.position_ids"),
  )
  if problems:
    refuse(problems, source=path, kind=net.kind)
  return variables
