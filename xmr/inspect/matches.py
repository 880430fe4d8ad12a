"""Which word matched which region: matrices of token similarities, and plots of them."""

import math
import os
from typing import Any

import numpy as np
from PIL import Image

from xmr.data import Subwords
from xmr.data.images import decode
from xmr.data.text import encode_all, tokenize
from xmr.encode import encode_batch, padded_as_trained
from xmr.errors import UserError
from xmr.inspect.pictures import is_picture
from xmr.inspect.plots import INK, RIGHT, WRONG, picture
from xmr.models.dual_encoder import gives_tokens
from xmr.ops.alignment import Tokens

SHADE = 0.75  # of the weakest cell; the strongest is clear
WORDS = 8  # words drawn of a caption


def align(run, image, text, image_mask=None):
  """Similarity of every region of an image with every word of a caption, a_rw of the run's tokens.

  Args:
    run: Run whose encoders give tokens.
    image: [R, F] float, the image's regions as in the feature file. Where the run reads pixels, an
      image as of Run.encode_image, whose patches, row by row, are the regions.
    text: str.  image_mask: [R] bool, True where there is a region; None is all.
  Returns:
    [R, W] float32: a row for each region (NaN where the mask is False), a column for each word, or
    sub-word in a run with a tokenizer.
  Raises:
    UserError: a run without tokens, regions of another shape, an empty mask, or a caption without a
      known word.
  """
  return _aligned(run, image, text, image_mask)[0]


def _aligned(run, image, text, image_mask):
  """The cells of `align`, and the names of their columns."""
  for side in ("image", "text"):
    encoder = getattr(run.model, f"{side}_encoder")
    if not gives_tokens(encoder):
      raise UserError(
        f"{run.workdir} has no tokens to align: its {side} encoder is {type(encoder).__name__}"
      )
  if run.config.data.image == "pixels":
    parts = {"image": run.crop(image)[None]}
  else:
    parts = _regions(image, image_mask)
  subwords = isinstance(run.vocabulary, Subwords)
  if not subwords and not any(word in run.vocabulary for word in tokenize(text)):
    raise UserError(f"no word of {text!r} is in the vocabulary of {run.workdir}; nothing to align")
  captions = _captions(run, [text])
  regions, found = _encoded(run, parts, "image"), _encoded(run, captions, "text")
  kept = found.mask[0]
  cells = np.where(regions.mask[0][:, None], regions.x[0] @ found.x[0][kept].T, np.nan)
  names = run.vocabulary.pieces(captions["text"][0][kept]) if subwords else tokenize(text)
  return cells.astype(np.float32), names


def _regions(image, image_mask):
  x = np.asarray(image)
  if x.ndim != 2 or x.dtype.kind != "f":
    raise UserError(
      f"image is {x.dtype} of shape {x.shape}; expected the floats [R, F] of one image's regions"
    )
  mask = np.ones(len(x), bool) if image_mask is None else np.asarray(image_mask, bool)
  if mask.shape != x.shape[:1] or not mask.any():
    raise UserError(
      f"image_mask has shape {mask.shape} and {int(mask.sum())} regions; expected "
      f"{x.shape[:1]} with at least one"
    )
  return {"image": x[None].astype(np.float32), "image_mask": mask[None]}


def _captions(run, texts):
  """Captions as the text encoder reads them; UserError for one without a word."""
  subwords = isinstance(run.vocabulary, Subwords)
  split = [text.split() if subwords else tokenize(text) for text in texts]
  for index, found in enumerate(split):
    if not found:
      raise UserError(f"text {index} is empty; expected words")
  if subwords:
    ids, length = run.vocabulary.encode_batch(texts)
  else:
    longest = max(map(len, split)) + 2
    ids, length = encode_all(split, run.vocabulary, length=longest + -longest % 16)
  return {"text": ids, "text_length": length}


def tokens(run, items: Any):
  """Returns (Tokens, "image" or "text") of images or captions.

  Captions are a list of str; images are regions as `regions` takes them or, for a run on pixels, as
  Run.encode_image takes them.

  Raises:
    UserError: neither of them, a mask that is empty or of another shape, a caption without a word.
  """
  pixels, array = run.config.data.image, getattr(items, "dtype", None)
  kind, ndim = getattr(array, "kind", None), getattr(items, "ndim", 0)
  one = isinstance(items, (str, os.PathLike, Image.Image)) or (kind == "u" and ndim == 3)
  many: list[Any] = [items] if one else list(items)  # pyright: ignore[reportArgumentType]
  if pixels == "pixels" and kind != "f" and many and all(map(is_picture, many)):
    side, parts = "image", {"image": np.stack([run.crop(item) for item in many])}
  elif pixels == "regions" and is_regions(items):
    side, parts = "image", regions(items, run)
  elif many and all(isinstance(item, str) for item in many):
    side, parts = "text", _captions(run, many)
  else:
    wanted = (
      "pictures"
      if pixels == "pixels"
      else "the floats [N, R, F] of regions, with a mask or without"
    )
    found = f"found {array} of shape {getattr(items, 'shape', None)}; " if array is not None else ""
    raise UserError(f"{run.workdir} compares tokens; {found}expected {wanted}, or captions")
  return _encoded(run, parts, side), side


def _encoded(run, parts, side):
  """Tokens, as NumPy arrays, of the inputs of a side's encoder."""
  size, found = run.config.eval_batch_size, []
  for begin in range(0, len(parts[side]), size):
    batch = {name: x[begin : begin + size] for name, x in parts.items()}
    found.append(encode_batch(run.variables, batch, model=run.model, side=side, tokens=True))
  x, mask = (np.concatenate([getattr(part, name) for part in found]) for name in ("x", "mask"))
  return padded_as_trained(Tokens(x, mask), run.config)


def is_regions(items: Any):
  """Says whether items are floats [N, R, F] or [N, H, W, F], or a pair of them and a mask."""
  if isinstance(items, tuple) and len(items) == 2:
    return is_regions(items[0])
  return getattr(getattr(items, "dtype", None), "kind", None) == "f" and getattr(
    items, "ndim", 0
  ) in (3, 4)


def regions(items, run):
  """Returns the batch {"image" [N, R, F], "image_mask" [N, R] where there is one} of regions.

  Args:
    items: [N, R, F] float, or a grid [N, H, W, F], or a pair of them and their mask [N, R] bool,
      True where there is a region.
    run: Run that is to encode them.
  Raises:
    UserError: regions of another width, a mask of another shape or type, a row of it that is empty.
  """
  x, mask = items if isinstance(items, tuple) else (items, None)
  width = len(run.params["image_encoder"]["projection"]["kernel"])
  if x.shape[-1] != width:
    raise UserError(f"found regions of {x.shape[-1]} numbers; {run.workdir} was trained on {width}")
  x = np.asarray(x, np.float32).reshape(len(x), -1, width)
  if mask is None:
    return {"image": x}
  mask = np.asarray(mask)
  if mask.dtype != bool or mask.shape != x.shape[:2]:
    raise UserError(
      f"the mask of regions is {mask.dtype} of shape {mask.shape}; expected bool of shape "
      f"{x.shape[:2]}"
    )
  empty = np.flatnonzero(~mask.any(axis=1))
  if len(empty):
    raise UserError(f"image {empty[0]} has no region, its mask is empty; expected at least one")
  return {"image": x, "image_mask": mask}


def drawn(run, split, pairs, *, folder=""):
  """Draws images with the regions that each word of a caption matches.

  Each pair is a line: the image, then the image once per word, with its cells shaded and the word
  under it. The region that matches best is not shaded. Regions that form no square grid are bars.

  Args:
    run: Run.  split: Split of regions.
    pairs: list of (image row, caption row); a caption of the image has a green frame.
    folder: the dataset's folder, see plots.picture.
  Returns:
    matplotlib Figure.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(1.3 * (WORDS + 1), 1.6 * len(pairs)), dpi=110, facecolor="white")
  axes = figure.subplots(len(pairs), WORDS + 1, squeeze=False)
  for line, (image, caption) in zip(axes, pairs, strict=True):
    mask = None if split.image_mask is None else split.image_mask[image]
    shown = picture(split, image, folder=folder)
    if split.image_features is None:
      # The patches lie on the crop that the encoder sees.
      source = shown = run.crop(decode(split.pixels[image], name=split.image_names[image]))
    else:
      source = split.image_features[image]
    cells, words = _aligned(run, source, split.texts[caption], mask)
    for axis in line:
      axis.set_xticks([])
      axis.set_yticks([])
    colour = RIGHT if split.image_of_text[caption] == image else WRONG
    _panel(line[0], shown, None)
    line[0].set_xlabel(split.image_names[image][:18], fontsize=6, color=INK, parse_math=False)
    for spine in line[0].spines.values():
      spine.set_color(colour)
      spine.set_linewidth(2)
    # The words with the best matches, in the order of the caption.
    strongest = np.sort(np.argsort(-np.nanmax(cells, axis=0), kind="stable")[:WORDS])
    for axis, w in zip(line[1:], strongest, strict=False):
      _panel(axis, shown, cells[:, w])
      axis.set_xlabel(
        f"{words[w]} {np.nanmax(cells[:, w]):.2f}", fontsize=7, color=INK, parse_math=False
      )
    for axis in line[1 + len(strongest) :]:
      axis.axis("off")
  figure.tight_layout(pad=0.4)
  return figure


def _panel(axis, shown, cells):
  """Draws an image with its cells shaded, or bars where there is no grid."""
  if cells is None:
    if shown is not None:
      axis.imshow(shown, extent=(0, 1, 0, 1))
    return
  side = math.isqrt(len(cells))
  low, high = np.nanmin(cells), np.nanmax(cells)
  strength = np.nan_to_num((cells - low) / (high - low) if high > low else np.ones_like(cells))
  if side * side != len(cells):
    axis.bar(np.arange(len(cells)), strength, color=INK)
    return
  if shown is not None:
    axis.imshow(shown, extent=(0, 1, 0, 1))
  shade = np.zeros((side, side, 4))
  shade[..., 3] = SHADE * (1 - strength.reshape(side, side))
  axis.imshow(shade, extent=(0, 1, 0, 1), interpolation="nearest")


def hits_and_misses(outcome, image_of_text, found, *, n=3):
  """Returns pairs to draw: captions whose image came first, and captions whose image came last,
  with the image that came first instead.

  Args:
    outcome: [T] int, rank of each caption's image.  image_of_text: [T] int.
    found: [T, k] int, images found for each caption.  n: pairs of each kind.
  Returns:
    (hits, misses): lists of (image row, caption row); a miss is followed by its own image.
  """
  order = np.argsort(outcome, kind="stable")
  hits = [(int(image_of_text[t]), int(t)) for t in order[:n] if outcome[t] == 0]
  misses = []
  for t in order[::-1][:n]:
    if outcome[t] > 0:
      misses += [(int(found[t, 0]), int(t)), (int(image_of_text[t]), int(t))]
  return hits, misses
