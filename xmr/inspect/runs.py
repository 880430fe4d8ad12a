"""A run as it can be asked: its config, parameters, words and curves; embeddings and search."""

import concurrent.futures
import functools
import hashlib
import io
import json
import os
import pathlib

import jax
import numpy as np
from PIL import Image

from xmr import checkpoint, models
from xmr import config as config_lib
from xmr.data import Vocabulary, features, images
from xmr.data.text import encode_all, tokenize
from xmr.encode import encode_batch
from xmr.errors import UserError
from xmr.eval import top_k
from xmr.inspect import export
from xmr.inspect.kept import curves, inputs_of

TASKS = ("i2t", "t2i", "i2i", "t2t")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


class Run:
  """A trained run.

  Attributes:
    workdir: pathlib.Path.
    config: ConfigDict, locked.
    step: int, of the checkpoint.
    params: nested dict of NumPy arrays.
    variables: {"params", "batch_stats" where there are any}, NumPy.
    vocabulary: xmr.data.Vocabulary; None where captions are features.
    metrics: {name: (steps [n] int, values [n] float)}: the curves, such as "train/loss" and
      "val/rsum"; NaN where the number was not finite.
    inputs: {name: array}: what turns raw features into the model's input, as the run kept it.
    model: xmr.models.DualEncoder.
  """

  def __init__(self, workdir, *, config, step, variables, vocabulary, metrics, inputs=None):
    self.workdir, self.config, self.step, self.variables = (
      pathlib.Path(workdir),
      config,
      step,
      variables,
    )
    self.vocabulary, self.metrics, self.inputs = vocabulary, metrics, inputs or {}
    self.model = models.build(
      config.model, vocabulary_size=None if vocabulary is None else len(vocabulary)
    )

  @property
  def params(self):
    return self.variables["params"]

  @functools.cached_property
  def _on_device(self):
    return jax.device_put(self.variables)

  def encode_image(self, pictures):
    """Encodes pictures as evaluation does.

    Args:
      pictures: list of N paths, PIL images or [H, W, 3] uint8 arrays in any mixture, one such
        picture, or [N, H, W, 3] uint8; for a run on features [N, F] float, in the scale of the
        feature file.
    Returns:
      [N, D] float32.
    Raises:
      UserError: a file that is no readable picture, or pictures for a run on features.
    """
    if self.config.data.image == "features":
      x = self._features(pictures, side="image")
      return self._encode([{"image": part} for part in self._parts(x)], len(x), side="image")
    if isinstance(pictures, (str, os.PathLike, Image.Image)) or getattr(pictures, "ndim", 0) == 3:
      pictures = [pictures]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      batches = (
        {"image": np.stack(list(pool.map(self.crop, part)))} for part in self._parts(pictures)
      )
      return self._encode(batches, len(pictures), side="image")

  def crop(self, picture):
    """Returns what the encoder sees of a path, PIL image or [H, W, 3] uint8 array: [S, S, 3]
    uint8.
    """
    data = self.config.data
    if data.image == "features":
      raise UserError(
        f"{self.workdir} was trained on image features, not on pictures; expected a run with "
        "data.image=pixels"
      )
    return images.eval_crop(opened(picture), resize=data.resize, size=data.image_size)

  def encode_crops(self, crops):
    """Encodes [N, S, S, 3] uint8 that `crop` made into [N, D] float32."""
    return self._encode(({"image": part} for part in self._parts(crops)), len(crops), side="image")

  @functools.cached_property
  def fingerprint(self):
    """Hex digest of all that an embedding of a picture depends on: parameters, encoder, size of the
    crop.
    """
    digest = hashlib.sha256()
    for name, x in sorted(checkpoint.flatten(self.variables).items()):
      if ".image_encoder." in name:
        digest.update(f"{name} {x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    flat = config_lib.flat(self.config)
    seen = {
      k: v
      for k, v in flat.items()
      if k in ("data.image_size", "data.resize") or k.startswith("model.")
    }
    digest.update(json.dumps(seen, sort_keys=True).encode())
    return digest.hexdigest()

  def encode_text(self, texts):
    """Encodes captions as evaluation does; words that the run has never seen are <unk>.

    Args:
      texts: list of T str, or one str; for a run on text features [T, F] float.
    Returns:
      [T, D] float32.
    Raises:
      UserError: a text without a word, or words for a run on features.
    """
    if self.vocabulary is None:
      x = self._features(texts, side="text")
      return self._encode([{"text": part} for part in self._parts(x)], len(x), side="text")
    tokens = [tokenize(text) for text in ([texts] if isinstance(texts, str) else texts)]
    for place, found in enumerate(tokens):
      if not found:
        raise UserError(f"text {place} is empty; expected words")

    def batches():
      for part in self._parts(tokens):
        longest = max(map(len, part)) + 2
        # Few different lengths, as each is compiled; what lies behind the end is masked.
        text, length = encode_all(part, self.vocabulary, length=longest + -longest % 16)
        yield {"text": text, "text_length": length}

    return self._encode(batches(), len(tokens), side="text")

  def unknown_words(self, text):
    """Returns (words of a text that the vocabulary lacks, all its words), two lists of str."""
    words = tokenize(text)
    if self.vocabulary is None:
      return [], words
    return [word for word in words if word not in self.vocabulary], words

  def search(self, query, gallery, k=5, *, task=None):
    """The k best gallery items of each query; the four tasks i2t, t2i, i2i and t2t.

    Args:
      query, gallery: pictures or texts as for encode_image and encode_text, or [N, D] float
        embeddings. A str is a path where it names an existing file with a picture's ending, a
        caption otherwise.
      k: items, at most the size of the gallery.
      task: "i2t", "t2i", "i2i" or "t2t": what query and gallery are; None: seen from their types.
        Order embeddings given as arrays need it.
    Returns:
      (scores [Q, k] float32, indices [Q, k] int32), best first.
    Raises:
      UserError: nothing in one of them, k out of range, or an unknown task.
    """
    if task is not None and task not in TASKS:
      raise UserError(f"task is {task!r}; expected one of {', '.join(TASKS)}")
    sides = (
      [{"i": "image", "t": "text"}[letter] for letter in (task[0], task[2])]
      if task
      else [None, None]
    )
    (query, query_side), (gallery, _) = (
      self._embedded(x, side, name)
      for x, side, name in zip((query, gallery), sides, ("query", "gallery"), strict=True)
    )
    if self.config.similarity == "order" and query_side is None:
      raise UserError(
        "order embeddings are not symmetric: say which task it is, task='t2i' and the like"
      )
    return top_k(query, gallery, k, kind=self.config.similarity, text_query=query_side == "text")

  def export(self, folder):
    """Writes model.safetensors ("params.image_encoder..." to array), config.json, vocabulary.json
    and run.json.

    `load` reads the folder back; anything else can, as well. Returns its path.
    """
    return export.write(self, folder)

  def _parts(self, items):
    size = self.config.eval_batch_size
    return (items[begin : begin + size] for begin in range(0, len(items), size))

  def _encode(self, batches, count, *, side):
    if not count:
      raise UserError(f"no {side}s to encode; expected at least one")
    found = []
    for batch in batches:
      size = len(batch[side])
      # Powers of two up to the evaluation's batch: few shapes to compile, at most twice the work.
      full = min(1 << (size - 1).bit_length(), max(size, self.config.eval_batch_size))
      rows = np.minimum(np.arange(full), size - 1)
      batch = {name: x[rows] for name, x in batch.items()}
      found.append(
        np.asarray(encode_batch(self._on_device, batch, model=self.model, side=side))[:size]
      )
    return np.concatenate(found)

  def _features(self, x, *, side):
    what = "pictures" if side == "image" else "words"
    kind = getattr(getattr(x, "dtype", None), "kind", None)
    if kind != "f" or x.ndim != 2:
      found = f"{x.dtype} of shape {x.shape}" if kind else what
      raise UserError(
        f"{self.workdir} was trained on {side} features; expected [N, F] floats (xmr.extract), "
        f"found {found}"
      )
    x = np.asarray(x, np.float32)
    kind = self.config.data.image_features_scale if side == "image" else "none"
    if kind != "column":
      return features.scale(x, kind)
    if "image_scale" not in self.inputs:
      raise UserError(
        f"{self.workdir} keeps no norms of the columns of its features (inputs.npz), as runs of "
        "earlier versions; python -m xmr.main --eval_only --workdir=DIR writes them"
      )
    return x / self.inputs["image_scale"]

  def _embedded(self, x, side, name):
    """Returns (embeddings, "image", "text" or None) of a query or gallery."""
    array = getattr(x, "dtype", None)
    if array is not None and array.kind == "f":
      return np.atleast_2d(np.asarray(x)), side
    items = (
      [x] if isinstance(x, (str, os.PathLike, Image.Image)) or getattr(x, "ndim", 0) == 3 else x
    )
    if not len(items):
      raise UserError(f"the {name} is empty; expected at least one picture or text")
    if side is None:
      side = "image" if all(map(is_picture, items)) else "text"
    return (self.encode_image(items) if side == "image" else self.encode_text(items)), side


def is_picture(item):
  """Returns whether an item of a query or gallery is a picture: no str, or the name of an image
  file that is there.
  """
  return not isinstance(item, str) or (
    item.lower().endswith(IMAGE_ENDINGS) and os.path.isfile(item)
  )


def opened(item):
  """Returns a path, PIL image or [H, W, 3] uint8 array as an RGB PIL image; UserError where it is
  none.
  """
  if isinstance(item, Image.Image):
    return item.convert("RGB")
  if isinstance(item, np.ndarray):
    if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3:
      raise UserError(f"a picture is {item.dtype} of shape {item.shape}; expected uint8 [H, W, 3]")
    return Image.fromarray(item)
  if isinstance(item, bytes):
    return images.decode(item, name="(bytes)")
  try:
    content = pathlib.Path(item).read_bytes()
  except OSError as error:
    raise UserError(f"cannot read image {item}: {error.strerror}") from None
  return images.decode(content, name=str(item))


def load(workdir, step="best"):
  """Loads a run; see xmr.inspect.load."""
  folder = pathlib.Path(workdir)
  if (folder / export.EXPORT).is_file():
    step, variables, vocabulary, metrics, flat = export.read(folder)
    return Run(
      folder,
      config=config_lib.from_flat(flat, where=folder / "config.json"),
      step=step,
      variables=variables,
      vocabulary=vocabulary,
      metrics=metrics,
      inputs=inputs_of(folder),
    )
  if not str(step).isdigit() and step not in ("best", "latest"):
    raise UserError(f'step is {step!r}; expected "best", "latest" or a number')
  step, variables, record = checkpoint.load(folder, step)
  config = config_lib.from_flat(record["config"], where=folder / "config.json")
  if config.task != "retrieval":
    raise UserError(f"{folder} is a run of task {config.task}; expected one of task retrieval")
  words = record["vocabulary"]
  vocabulary = None if words is None else Vocabulary.from_json(json.dumps(words))
  metrics = curves(folder / "metrics.jsonl")
  return Run(
    folder,
    config=config,
    step=step,
    variables=variables,
    vocabulary=vocabulary,
    metrics=metrics,
    inputs=inputs_of(folder),
  )


def thumbnail(image, *, side, quality=60):
  """Returns a PIL image as WebP bytes whose longer side has at most `side` pixels."""
  image = image.copy()
  image.thumbnail((side, side))
  file = io.BytesIO()
  image.convert("RGB").save(file, "WEBP", quality=quality)
  return file.getvalue()
