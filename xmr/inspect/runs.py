"""A run for inspection: its config, parameters, vocabulary and curves; embeddings and search."""

import concurrent.futures
import functools
import hashlib
import json
import os
import pathlib

import flax.errors
import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from xmr import checkpoint, encode, models, parallel
from xmr import config as config_lib
from xmr.data import features, images
from xmr.data.text import tokenize
from xmr.errors import UserError, choice
from xmr.eval import top_k
from xmr.inspect import export, matches, programs
from xmr.inspect.pictures import is_picture, opened
from xmr.models import lora
from xmr.ops.alignment import MIRROR, NAMES, WITHIN, Tokens
from xmr.training import averaging

TASKS = ("i2t", "t2i", "i2i", "t2t")


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
    self.workdir, self.config = pathlib.Path(workdir), config
    self.step, self.variables = step, variables
    self.vocabulary, self.metrics, self.inputs = vocabulary, metrics, inputs or {}
    self.model = self.build()

  def build(self):
    """Returns the model that the parameters belong to."""
    size = None if self.vocabulary is None else len(self.vocabulary)
    return models.build(self.config.model, vocabulary_size=size, base=lora.base(self.config))

  def __repr__(self):
    config = self.config
    parts = [
      f"{config.data.name}, {config.loss.name}, step {self.step}",
      f"images by {config.model.image.name}, texts by {config.model.text.name}, "
      f"{config.model.dim} dimensions",
    ]
    if self.vocabulary is not None:
      parts.append(f"{len(self.vocabulary):,} words")
    for name in ("val/rsum", "val/map"):
      if name in self.metrics:
        parts.append(f"best {name} {np.nanmax(self.metrics[name][1]):.4g}")
    return f"<Run {self.workdir}: {'; '.join(parts)}>"

  @property
  def params(self):
    return self.variables["params"]

  @functools.cached_property
  def _on_device(self):
    return jax.device_put(self.variables)

  def embeddings(self, split):
    """Returns (image [N, D], text [T, D]) float32 of a split as evaluation does, on all devices;
    Tokens [N, R, D] and [T, W, D] where config.similarity compares tokens.
    """
    mesh = parallel.mesh()
    variables = parallel.replicate(mesh, self.variables)
    options = {"config": self.config, "mesh": mesh, "vocabulary": self.vocabulary}
    image, text = (
      encode.encode_split(self.model, variables, split, side=side, **options)
      for side in ("image", "text")
    )
    return image, text

  def encode_image(self, pictures, *, batch_size=None, progress=False):
    """Encodes images as evaluation does.

    Args:
      pictures: list of N paths, PIL images or [H, W, 3] uint8 arrays in any mixture, one such
        image, or [N, H, W, 3] uint8. For a run on features, [N, F] float; on regions, [N, R, F] or
        a pair of them and their mask [N, R] bool; both in the scale of the feature file.
      batch_size: images encoded at a time; None: as evaluation does.  progress: show a line on
        standard error.
    Returns:
      [N, D] float32.
    Raises:
      UserError: a file that is no readable image, or images for a run on features; names the item.
    """
    if self.config.data.image == "regions" and matches.is_regions(pictures):
      parts = matches.regions(pictures, self)
      count = len(parts["image"])
      batches = (
        {name: x[rows] for name, x in parts.items()}
        for rows in self._parts(np.arange(count), batch_size)
      )
      return self._encode(batches, count, side="image", progress=progress)
    if self.config.data.image != "pixels":
      x = self._features(pictures, side="image")
      return self._encode(self._by("image", x, batch_size), len(x), side="image", progress=progress)
    if isinstance(pictures, (str, os.PathLike, Image.Image)) or getattr(pictures, "ndim", 0) == 3:
      pictures = [pictures]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      numbered = list(enumerate(pictures))
      batches = (
        {"image": np.stack(list(pool.map(self._numbered_crop, part)))}
        for part in self._parts(numbered, batch_size)
      )
      return self._encode(batches, len(numbered), side="image", progress=progress)

  def _numbered_crop(self, item):
    number, picture = item
    try:
      return self.crop(picture)
    except UserError as error:
      raise UserError(f"picture {number}: {error}") from None

  def crop(self, picture):
    """Returns the crop that the encoder sees, [S, S, 3] uint8, of a path, PIL image or [H, W, 3]
    uint8 array.
    """
    data = self.config.data
    if data.image != "pixels":
      raise UserError(
        f"{self.workdir} was trained on image features, not on pictures; expected a run with "
        "data.image=pixels"
      )
    return images.eval_crop(
      opened(picture),
      resize=data.resize,
      size=data.image_size,
      fit=data.fit,
      interpolation=data.interpolation,
    )

  def encode_crops(self, crops):
    """Encodes [N, S, S, 3] uint8 that `crop` made into [N, D] float32."""
    return self._encode(({"image": part} for part in self._parts(crops)), len(crops), side="image")

  @functools.cached_property
  def fingerprint(self):
    """Hex digest of all that an image's embedding depends on: parameters, encoder, crop size."""
    digest = hashlib.sha256()
    for name, x in sorted(checkpoint.flatten(self.variables).items()):
      # Layers that both sides share are the encoder's, too.
      if ".image_encoder." in name or ".shared." in name:
        digest.update(f"{name} {x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    flat = config_lib.flat(self.config)
    seen = {
      k: v
      for k, v in flat.items()
      if k in ("data.image_size", "data.resize", "data.fit", "data.interpolation")
      or k.startswith("model.")
    }
    digest.update(json.dumps(seen, sort_keys=True).encode())
    return digest.hexdigest()

  def encode_text(self, texts, *, batch_size=None, progress=False):
    """Encodes captions as evaluation does. Words outside the run's vocabulary become <unk>, and
    texts with more tokens than a tower reads lose their last words.

    Args:
      texts: list of T str, or one str; for a run on text features [T, F] float.
      batch_size, progress: as encode_image.
    Returns:
      [T, D] float32.
    Raises:
      UserError: an item that is no text or has no word (names it), or text for a run on features.
    """
    if self.vocabulary is None:
      x = self._features(texts, side="text")
      return self._encode(self._by("text", x, batch_size), len(x), side="text", progress=progress)
    texts = self._texts(texts)

    def batches():
      for part in self._parts(texts, batch_size):
        text, length = self.vocabulary.encode_batch(part)
        yield {"text": text, "text_length": length}

    return self._encode(batches(), len(texts), side="text", progress=progress)

  def _texts(self, texts):
    """Returns a list of str; UserError for an item that is none."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(texts):
      if not isinstance(text, str):
        raise UserError(f"text {number} is {text!r:.60}; expected a str")
    return texts

  @property
  def known_words(self):
    """Number of words in the run's vocabulary; 0 where its captions are features."""
    return 0 if self.vocabulary is None else len(self.vocabulary)

  def unknown_words(self, text):
    """Returns (words of a text that the vocabulary lacks, all its words), two lists of str."""
    words = tokenize(text)
    if self.vocabulary is None:
      return [], words
    return [word for word in words if word not in self.vocabulary], words

  def search(self, query, gallery, k=5, *, task=None):
    """Returns the k best gallery items of each query, for the tasks i2t, t2i, i2i and t2t.

    Args:
      query, gallery: images or texts as for encode_image and encode_text, or [N, D] float
        embeddings; where config.similarity compares tokens, Tokens as of `embeddings`. A str is a
        path if it names an existing image file, else a caption.
      k: items per query, at most the size of the gallery.
      task: "i2t", "t2i", "i2i" or "t2t"; None: known from the types of query and gallery. Order
        embeddings given as arrays, and Tokens of one-sided similarities, need it.
    Returns:
      (scores [Q, k] float32, indices [Q, k] int32), best first.
    Raises:
      UserError: an empty query or gallery, k out of range, or an unknown task.
    """
    if task is not None and task not in TASKS:
      raise UserError(f"task is {task!r}; expected one of {', '.join(TASKS)}")
    sides = (
      [{"i": "image", "t": "text"}[letter] for letter in (task[0], task[2])]
      if task
      else [None, None]
    )
    (query, query_side), (gallery, gallery_side) = (
      self._embedded(x, side, name)
      for x, side, name in zip((query, gallery), sides, ("query", "gallery"), strict=True)
    )
    if self.config.similarity == "order" and query_side is None:
      raise UserError(
        "order embeddings are not symmetric: say which task it is, task='t2i' and the like"
      )
    kind, text_query = self.config.similarity, query_side == "text"
    if MIRROR.get(kind, kind) != kind and None in (query_side, gallery_side):
      raise UserError(
        f"{kind} sums over the tokens of one side: say which task it is, task='t2i' and the like"
      )
    if kind in NAMES and query_side == gallery_side:
      # As evaluation ranks i2i and t2t: one-sided kinds sum over the query's tokens.
      kind, text_query = WITHIN[kind], False
    return top_k(query, gallery, k, kind=kind, text_query=text_query)

  def align(self, image, text, image_mask=None):
    """Returns the similarity [R, W] float32 of each region [R, F] with each word of a caption; see
    matches.align.
    """
    return matches.align(self, image, text, image_mask)

  def averaged(self, share):
    """Returns the run with weights between those of config.init and its own (WiSE-FT).

    Args:
      share: a in [0, 1], the share of its own weights; see averaging.between.
    Returns:
      Run with its adapters merged.
    Raises:
      UserError: config.init is not set, or its model is another one.
    """
    _, start, end = averaging.ends(self.model, self.variables, self.config)
    config = self.config.copy_and_resolve_references()
    with config.unlocked():
      config.model.lora.rank = 0
    return type(self)(
      self.workdir,
      config=config,
      step=self.step,
      variables=averaging.between(start, end, share),
      vocabulary=self.vocabulary,
      metrics=self.metrics,
      inputs=self.inputs,
    )

  def export(self, folder, *, format="safetensors"):
    """Exports the run with its adapters merged, and returns the folder's path.

    Args:
      folder: path.
      format: "safetensors": model.safetensors ("params.image_encoder..." to array), config.json,
        vocabulary.json and run.json, which `load` reads back and anything else can; "stablehlo" and
        "onnx": the same, and image.FORMAT and text.FORMAT beside it, see xmr.inspect.programs.
    Raises:
      UserError: an unknown format, a missing package, or a tower that reads features, whose input
        is not fixed.
    """
    choice("format", format, ("safetensors", "stablehlo", "onnx"))
    if format != "safetensors":
      programs.check(self, format)
    export.write(self, folder)
    if format == "stablehlo":
      programs.write(self, folder)
    if format == "onnx":
      programs.write_onnx(self, folder)
    return pathlib.Path(folder)

  def _parts(self, items, size=None):
    size = self.config.eval_batch_size if size is None else size
    if size < 1:
      raise UserError(f"batch_size is {size}; expected 1 or more")
    return (items[begin : begin + size] for begin in range(0, len(items), size))

  def _by(self, side, x, size):
    return ({side: part} for part in self._parts(x, size))

  def _encode(self, batches, count, *, side, progress=False):
    if not count:
      raise UserError(f"no {side}s to encode; expected at least one")
    found = []
    bar = tqdm(total=count, desc=f"encoding {side}s", disable=not progress)
    for batch in batches:
      size = len(batch[side])
      # Powers of two up to the evaluation's batch: few shapes to compile, at most twice the work.
      full = min(1 << (size - 1).bit_length(), max(size, self.config.eval_batch_size))
      rows = np.minimum(np.arange(full), size - 1)
      batch = {name: x[rows] for name, x in batch.items()}
      try:
        found.append(np.asarray(self._batch(batch, side))[:size])
      except flax.errors.ScopeParamShapeError as error:
        raise UserError(
          f"{self.workdir} was trained on {side} features of another size; found "
          f"{list(batch[side].shape[1:])} ({str(error).partition(' (https')[0]})"
        ) from None
      bar.update(size)
    bar.close()
    return np.concatenate(found)

  def _batch(self, batch, side):
    return encode.encode_batch(self._on_device, batch, model=self.model, side=side)

  def _features(self, x, *, side):
    what = "pictures" if side == "image" else "words"
    kind = getattr(getattr(x, "dtype", None), "kind", None)
    regions = side == "image" and self.config.data.image == "regions"
    if kind != "f" or x.ndim != 2 + regions or 0 in x.shape:
      found = f"{x.dtype} of shape {x.shape}" if kind else what
      shape = "[N, R, F]" if regions else "[N, F]"
      raise UserError(
        f"{self.workdir} was trained on {side} features; expected {shape} floats (xmr.extract), "
        f"found {found}"
      )
    sums = x.reshape(len(x), -1).sum(axis=1, dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(sums))
    if len(wrong):
      raise UserError(f"row {wrong[0]} of the {side} features holds NaN or infinity")
    return self._scaled(np.asarray(x, np.float32), side)

  def _scaled(self, x, side):
    """Returns features [N, F] of the file, scaled as the encoder takes them."""
    kind = self.config.data.image_features_scale if side == "image" else "none"
    if kind != "column":
      return features.scale(x, kind)
    if "image_scale" not in self.inputs:
      raise UserError(
        f"{self.workdir} keeps no norms of the columns of its features (inputs.npz), as runs of "
        "earlier versions; python -m xmr.main --eval_only --workdir=DIR writes them"
      )
    if x.shape[-1] != len(self.inputs["image_scale"]):
      raise UserError(
        f"{self.workdir} was trained on {len(self.inputs['image_scale'])} features; found "
        f"{x.shape[-1]}"
      )
    return x / self.inputs["image_scale"]

  def _embedded(self, x, side, name):
    """Returns (embeddings, side) of a query or gallery; the side is "image", "text" or None."""
    if self.config.similarity in NAMES:
      return (x, side) if isinstance(x, Tokens) else matches.tokens(self, x)
    if self.config.data.image == "regions" and matches.is_regions(x):
      return self.encode_image(x), "image"
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
